"""What the numbers say, in words: the verdict, and what a reader must know before believing it.

Every sentence is made from the scores; what did not happen is not mentioned.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from heatproof.metrics import roar
from heatproof.metrics.comparison import ORACLE, REFERENCES, Entry
from heatproof.report.records import FIRSTS, Curves, MapHealth, Method, RetrainingLine
from heatproof.report.scores import Scored
from heatproof.report.verdicts import Finding, Mark, Row, Verdict
from heatproof.report.wording import LEAKS, count, interval, listed, marks, percent, signed

MANY_TIES = 0.1
"""Share of tied pixels at a cut from which the page warns: the order there is drawn, not the method's."""
MANY_MIXED = 2
"""Methods that pass some tests and fail others; of more than that, the sentences name no details."""
FEWEST_METHODS = 3
"""Methods from which a rank correlation is shown."""


def verdict(
    scored: Sequence[Scored],
    methods: Sequence[Method],
    confidence: float,
    unreadable: Collection[str] = (),
) -> Verdict:
    """Which methods beat the reference controls, in which tests.

    Args:
        scored: all scores; only the primary ones count.
        methods: of the configuration.
        confidence: of the intervals, for the wording.
        unreadable: methods whose masks alone reveal the class: their ROAR says nothing.
    """
    primary = [part for part in scored if part.score.is_primary]
    tests = tuple(part.score.title for part in primary)
    references = tuple(name for name in REFERENCES if any(part.entry(name) for part in primary))
    names = [method.name for method in methods if not method.control]
    rows = [Row(name, tuple(_mark(part, name, references, unreadable) for part in primary)) for name in names]
    rows = [row for row in rows if any(mark.text for mark in row.marks)]
    order = sorted(rows, key=lambda row: (-len(row.passed()), _mean_rank(primary, row.method), names.index(row.method)))
    if not primary:
        return Verdict(
            "Nothing has been tested yet",
            ("No test has results so far; this page names the commands that make them.",),
            (),
            (),
            (),
        )
    headline, sentences = _worded(order, tests, references, confidence)
    return Verdict(headline, tuple(sentences), tests, tuple(order), references)


def findings(
    scored: Sequence[Scored],
    curves: Curves | None,
    health: Sequence[MapHealth],
    methods: Sequence[Method],
    *,
    others: Sequence[Scored] = (),
    lines: Sequence[RetrainingLine] = (),
    label_targets: bool = False,
) -> list[Finding]:
    """What a reader must know before believing the verdict.

    Args:
        scored: all scores that the verdict is made of; only the primary ones count.
        curves: without retraining, for reasons.
        health: of the maps; those of controls may tie and be constant by design.
        methods: of the configuration.
        others: primary scores of further tests, which have to recognise the right answer too.
        lines: what retraining amounts to.
        label_targets: whether the maps explain the true class.
    """
    primary = [part for part in scored if part.score.is_primary]
    asked = [part for part in (*primary, *others) if part.score.is_ranked and part.score.oracle_best]
    controls = {method.name for method in methods if method.control}
    tested = [found for found in health if found.method not in controls]
    found = [
        *_known_truth(asked),
        *_leaking(lines),
        *_beats_oracle(primary, curves, health),
        *_loses_to_random(primary, tested),
        *_single_runs(primary),
        *_tied(tested),
        *_constant(tested),
        *_invalid(health),
    ]
    if label_targets:
        found.append(
            Finding(
                "warning",
                "The maps explain the true class",
                (
                    "A map of the true class writes the label into the mask of removed pixels, where a retrained network can "
                    "read it off. ROAR and KAR of such maps are no measure of faithfulness; use target: predicted.",
                ),
            )
        )
    return found


# --- the verdict


def _mark(part: Scored, name: str, references: Sequence[str], unreadable: Collection[str]) -> Mark:
    entry = part.entry(name)
    test = part.score.title
    if entry is None or entry.n == 0:
        return Mark(test, "unknown", "no results yet" if entry else "")
    if test == "ROAR" and name in unreadable:
        return Mark(test, "unknown", LEAKS)
    against = [reference for reference in references if reference in entry.versus]
    if not against:
        return Mark(test, "unknown", "no control to compare with")
    if not entry.is_judged:
        return Mark(test, "unknown", "one run: no interval")
    missed = [reference for reference in against if reference not in entry.beaten]
    if not missed or not part.score.is_ranked:
        return Mark(test, "all", f"beats {_all_of(against)}")
    worse = [reference for reference in missed if entry.versus[reference].outcome == "worse"]
    words = [f"worse than {listed(worse)}"] if worse else []
    words += marks([reference for reference in missed if reference not in worse])
    return Mark(test, "some" if len(missed) < len(against) else "none", "; ".join(words))


def _all_of(names: Sequence[str]) -> str:
    return f"all {len(names)}" if len(names) > 1 else names[0]


def _worded(
    rows: Sequence[Row], tests: Sequence[str], references: Sequence[str], confidence: float
) -> tuple[str, list[str]]:
    if not references:
        return "No verdict without a control", [
            f"None of {listed(REFERENCES, 'and')} was measured, so there is nothing to beat; add controls to the configuration."
        ]
    judged = [row for row in rows if any(mark.passes != "unknown" for mark in row.marks)]
    if not judged:
        return "No verdict yet", [
            "There are no intervals yet, so nothing can be called better or worse: more runs or images are needed."
        ]
    tested = [
        mark.test for mark in judged[0].marks if any(row_mark(row, mark.test).passes != "unknown" for row in judged)
    ]
    winners = [row.method for row in judged if set(row.passed()) >= set(tested)]
    losers = [row for row in judged if not row.passed()]
    mixed = [row for row in judged if row.passed() and row.method not in winners]
    controls = listed(references)
    every = {1: tested[0], 2: "both tests"}.get(len(tested), f"all {len(tested)} tests")
    headline = (
        f"{len(winners)} of {count(len(judged), 'method')} {'beats' if len(winners) == 1 else 'beat'} every control in {every}"
        if winners
        else f"None of {count(len(judged), 'method')} beats every control in {every}"
        if len(judged) > 1
        else f"{judged[0].method} does not beat every control in {every}"
    )
    sentences = []
    if winners:
        does = "does" if len(winners) == 1 else "do"
        sentences.append(
            f"{listed(winners)} {does} better than {controls} in {listed(tested)}, beyond the {percent(confidence)} interval "
            "of the paired difference."
        )
    sentences += _mixed_sentences(mixed, controls, bool(winners))
    if losers:
        is_, any_ = ("is", "any test") if len(tested) > 1 else ("is", tested[0])
        are = "are" if len(losers) > 1 else is_
        sentences.append(
            f"{listed([row.method for row in losers])} {are} not shown to be better than every control in {any_}"
            f"{_why(losers[0]) if len(losers) == 1 else ''}."
        )
    return headline, sentences


def row_mark(row: Row, test: str) -> Mark:
    """A method's mark under a test."""
    return next(mark for mark in row.marks if mark.test == test)


def _mixed_sentences(rows: Sequence[Row], controls: str, said: bool) -> Iterator[str]:
    if len(rows) > MANY_MIXED:
        yield (
            f"{count(len(rows), 'method')} ({listed([row.method for row in rows])}) beat every control in some tests only; "
            "the table says which."
        )
        return
    for row in rows:
        missed = [mark for mark in row.marks if mark.passes in ("some", "none")]
        better = f"{row.method} does so in" if said else f"{row.method} does better than {controls} in"
        failed = "; ".join(f"in {mark.test} it is {mark.text}" for mark in missed)
        yield f"{better} {listed(row.passed())}, but {failed}."
        said = True


def _why(row: Row) -> str:
    reasons = [f"{mark.test}: {mark.text}" for mark in row.marks if mark.passes in ("some", "none")]
    return f" ({'; '.join(reasons)})" if reasons else ""


def _mean_rank(primary: Sequence[Scored], name: str) -> float:
    ranks = [entry.rank for part in primary if (entry := part.entry(name)) and entry.rank is not None]
    return float(np.mean(ranks)) if ranks else math.inf


# --- what else must be said


def _known_truth(primary: Sequence[Scored]) -> Iterator[Finding]:
    """Does each test recognise the answer that is known to be right?"""
    outcomes = {
        part.score.title: entry.versus["random"].outcome
        for part in primary
        if (entry := part.entry(ORACLE)) and "random" in entry.versus and entry.is_judged
    }
    failed = [part for part in primary if outcomes.get(part.score.title, "better") != "better"]
    if failed:
        is_wide = all(outcomes[part.score.title] == "undecided" for part in failed)
        yield Finding(
            "warning",
            f"The right answer is not recognised in {listed([part.score.title for part in failed])}",
            (
                "The oracle ranks the pixels of the true object first, and is not shown to beat the random control there. "
                + (
                    "With these results the test cannot tell a good map from a bad one: more runs or images may help."
                    if is_wide
                    else "Such a test cannot tell a good map from a bad one on these data: do not rank methods by it."
                ),
            ),
            tuple(_gains(part, [ORACLE], "random") for part in failed),
        )
    elif outcomes:
        yield Finding(
            "good",
            f"{'The tests recognise' if len(outcomes) > 1 else f'{next(iter(outcomes))} recognises'} the right answer",
            (
                f"The oracle ranks the pixels of the true object first. It beats the random control in {listed(list(outcomes))}, "
                "so a good map can be told from a bad one on these data.",
            ),
        )


def leaking(lines: Sequence[RetrainingLine]) -> tuple[str, ...]:
    """Methods whose masks alone reveal the class."""
    return tuple(dict.fromkeys(line.method for line in lines if line.metric == "mask_only" and line.leaks))


def _leaking(lines: Sequence[RetrainingLine]) -> Iterator[Finding]:
    flagged = leaking(lines)
    if flagged:
        told = [
            line for line in lines if line.metric == "mask_only" and line.method in flagged and line.mean > line.chance
        ]
        yield Finding(
            "warning",
            f"ROAR cannot be read for {listed(flagged)}",
            (
                "Networks that see nothing but the mask of the removed pixels predict the class better than chance. What ROAR and "
                "KAR measure there may be the shape of the hole instead of what was in it.",
            ),
            tuple(
                f"{line.method}, {percent(line.removed_fraction)} removed: accuracy {percent(line.mean)} "
                f"{interval(line.images_low, line.images_high)} from the masks alone, chance {percent(line.chance)}, "
                f"n = {count(line.n, 'run')}"
                for line in told
            ),
        )


def _beats_oracle(primary: Sequence[Scored], curves: Curves | None, health: Sequence[MapHealth]) -> Iterator[Finding]:
    winners = {part.score.title: _tested(part, ORACLE, "better") for part in primary}
    ties = max((max(found.tied.values(), default=0) for found in health if found.method == ORACLE), default=0)
    for unit in ("run", "image"):
        parts = [part for part in primary if part.score.unit == unit and winners[part.score.title]]
        if parts:
            why = _why_retrained() if unit == "run" else _why_untrained(parts, winners, primary, curves)
            if ties > MANY_TIES:
                why += (
                    "The oracle itself does not order the pixels within the object: a method that begins with the most telling "
                    "of them can be ahead as long as less than the object is removed.",
                )
            where = ", without retraining" if unit == "image" else ""
            title = _who_where(parts, winners, "beats the oracle", "beat the oracle")
            points = (_gains(part, winners[part.score.title], ORACLE) for part in parts)
            yield Finding("warning", f"{title}{where}", why, tuple(points))


Chosen = Mapping[str, Sequence[str]]
"""For each test some of the methods."""


def _why_untrained(
    parts: Sequence[Scored], winners: Chosen, primary: Sequence[Scored], curves: Curves | None
) -> tuple[str, ...]:
    why = (
        "How that can be: a curve without retraining asks what moves this one network, not where the evidence lies. A filled "
        "picture is unlike any that the network was trained on, and removing pixels can push it to another class although "
        "the evidence is still there."
    )
    if curves is not None:
        why += _pushed(parts[0], winners[parts[0].score.test][0], curves)
    why += " A map that follows such habits of the network scores above the true object, and is not a better explanation for it."
    retrained = [part.score.title for part in primary if part.score.unit == "run" and part.entry(ORACLE)]
    names = {name for part in parts for name in winners[part.score.title]}
    if retrained and not any(names & set(winners[test]) for test in retrained):
        who = "it does not" if len(names) == 1 else "they do not"
        why += f" Where networks are retrained ({listed(retrained)}), {who} beat the oracle."
    return (why,)


def _why_retrained() -> tuple[str, ...]:
    return (
        "A retrained network should not do better than with the true object, so look for a reason: evidence outside the "
        "object; a removed share that is larger or smaller than the object, where the rest of the oracle's order is in no "
        "particular order; or masks whose shape gives the class away.",
    )


def _pushed(part: Scored, name: str, curves: Curves) -> str:
    """How often removal changes the prediction, where the method and the oracle lie furthest apart."""
    known = name in curves.predicted and ORACLE in curves.predicted
    if not known or part.score.title not in ("MoRF", "LeRF"):
        return ""
    end = 0 if part.score.title == "MoRF" else 1
    gap = np.nanmean(curves.probability[name][:, end] - curves.probability[ORACLE][:, end], axis=0)
    step = int(np.argmax(np.abs(gap)))
    changed = {who: curves.predicted[who][:, end, step] != curves.predicted[who][:, end, 0] for who in (name, ORACLE)}
    fraction, first = percent(curves.fractions[step]), FIRSTS[end]
    text = (
        f" With {fraction} removed, the {first} important pixels first, the prediction changes on "
        f"{percent(changed[ORACLE].mean())} of the images under the oracle and on {percent(changed[name].mean())} under {name}"
    )
    who = ORACLE if end == 1 else name
    classes, amounts = np.unique(curves.predicted[who][:, end, step][changed[who]], return_counts=True)
    if len(classes):
        most = int(np.argmax(amounts))
        label = curves.class_names[classes[most]] if curves.class_names else str(classes[most])
        text += f"; under {who} most often to “{label}” ({percent(amounts[most] / amounts.sum())} of these changes)"
    return f"{text}."


_RANDOM_WINS = {
    "ROAR": "A network retrained without the pixels ranked highest does better than one retrained without random pixels.",
    "KAR": "A network retrained on the pixels ranked highest does worse than one retrained on random pixels.",
    "MoRF": "Removing random pixels lowers the target's probability faster than removing first the pixels ranked highest.",
    "LeRF": "Removing random pixels keeps the target's probability higher than removing first the pixels ranked lowest.",
}


def _loses_to_random(primary: Sequence[Scored], health: Sequence[MapHealth]) -> Iterator[Finding]:
    losers = {part.score.title: _tested(part, "random", "worse") for part in primary}
    parts = [part for part in primary if losers[part.score.title]]
    if not parts:
        return
    tests = [part.score.title for part in parts]
    names = {name for test in tests for name in losers[test]}
    paragraphs = []
    if "LeRF" in tests:
        paragraphs.append(
            "In LeRF, removing scattered random pixels leaves something of everything, while removing whole areas takes them "
            "away. Where the network needs its surroundings to look familiar, that alone can favour the random control."
        )
    tied = [
        found.method for found in health if found.method in names and max(found.tied.values(), default=0) > MANY_TIES
    ]
    if tied:
        paragraphs.append(
            f"Many pixels tie in the maps of {listed(tied)}, so part of their order is drawn (see below)."
        )
    points = (
        f"{_gains(part, losers[part.score.title], 'random')}. {_RANDOM_WINS.get(part.score.title, '')}"
        for part in parts
    )
    yield Finding(
        "warning",
        f"Random beats {_who_where(parts, losers, '', '')}",
        tuple(paragraphs),
        tuple(points),
    )


def _single_runs(primary: Sequence[Scored]) -> Iterator[Finding]:
    tests = [
        part.score.title
        for part in primary
        if part.score.unit == "run" and part.entries and max(entry.n for entry in part.entries) == 1
    ]
    if tests:
        yield Finding(
            "note",
            f"One run only in {listed(tests)}",
            (
                "A single retraining has no interval, so no difference can be called real: let more of the grid finish, or add seeds to retrain_cls.",
            ),
        )


def _tied(health: Sequence[MapHealth]) -> Iterator[Finding]:
    worst = {
        found.method: max(found.tied.items(), key=lambda item: item[1])
        for found in health
        if found.tied and max(found.tied.values()) > MANY_TIES
    }
    if worst:
        yield Finding(
            "note",
            "Part of an order is drawn, not the method's",
            (
                "Pixels of equal value on both sides of a cut are ordered by a random key, the same for every method. There a "
                "method is partly tested as if it were random.",
            ),
            tuple(
                f"{name}: {percent(share)} of the pixels tie at {percent(fraction)} removed"
                for name, (fraction, share) in worst.items()
            ),
        )


def _constant(health: Sequence[MapHealth]) -> Iterator[Finding]:
    constant = tuple(f"{found.method}: {found.constant:,} of {found.images:,}" for found in health if found.constant)
    if constant:
        yield Finding("note", "Maps of one value only", ("Their order is drawn as a whole.",), constant)


def _invalid(health: Sequence[MapHealth]) -> Iterator[Finding]:
    invalid = tuple(f"{found.method}: {found.invalid:,} of {found.images:,}" for found in health if found.invalid)
    if invalid:
        paragraphs = ("They are left out of every score, and counted there.",)
        yield Finding("note", "Maps that hold NaN or infinity", paragraphs, invalid)


def _outcome(entry: Entry, opponent: str) -> str:
    return entry.versus[opponent].outcome if opponent in entry.versus else "undecided"


def _gains(part: Scored, names: Sequence[str], opponent: str) -> str:
    """Differences of methods to an opponent, with intervals and n."""
    return f"{part.score.title} {part.score.name}, difference to {opponent}: " + "; ".join(
        f"{name} {signed(versus.gain)} {interval(*versus.gain_ends)}, n = {versus.n:,}"
        for name in names
        if (entry := part.entry(name)) and (versus := entry.versus[opponent])
    )


def _tested(part: Scored, opponent: str, outcome: str) -> list[str]:
    """The methods under test with this outcome against an opponent."""
    return [e.method for e in part.entries if not e.control and _outcome(e, opponent) == outcome]


def _who_where(parts: Sequence[Scored], chosen: Chosen, does: str, do: str) -> str:
    """Methods, what they do, and the tests; one phrase for each set of methods."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for part in parts:
        groups.setdefault(tuple(chosen[part.score.title]), []).append(part.score.title)
    phrases = []
    for position, (names, tests) in enumerate(groups.items()):
        verb = "" if position else (does if len(names) == 1 else do)
        phrases.append(" ".join(word for word in (listed(names), verb, "in", listed(tests)) if word))
    return ", ".join(phrases)


# --- opposite orders


Order = tuple[str, int, tuple[tuple[float, float], ...]]
"""Names of a pair of opposite orders, number of methods, and for each removed fraction Spearman's correlation."""


def orders(methods: Sequence[Method], curves: Curves | None) -> list[Order]:
    """How alike MoRF and LeRF rank the methods under test; nothing with fewer than three of them.

    ROAR and KAR are compared by the lines of what retraining amounts to.
    """
    names = [method.name for method in methods if not method.control and curves and method.name in curves.probability]
    if curves is None or len(names) < FEWEST_METHODS:
        return []
    places = np.flatnonzero(curves.fractions > 0)
    most, least = (
        np.array(
            [np.ma.masked_invalid(curves.probability[n][:, end, places]).mean(axis=0).filled(np.nan) for n in names]
        )
        for end in range(len(FIRSTS))
    )
    values = roar.order_agreement(most, least).spearman
    return [("MoRF and LeRF", len(names), tuple(zip(curves.fractions[places].tolist(), values.tolist(), strict=True)))]
