// Draws the charts in the colours of the page, and again when the scheme or the width of the window changes.
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const scheme = window.matchMedia("(prefers-color-scheme: dark)");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function painted(trace) {
    const own = trace.meta[scheme.matches ? "dark" : "light"];
    const copy = { ...trace, line: { ...trace.line, color: own } };
    if (trace.marker) copy.marker = { ...trace.marker, color: own };
    if (trace.error_y) copy.error_y = { ...trace.error_y, color: own };
    if (trace.fill) copy.fillcolor = own;
    return copy;
  }

  function framed(layout, narrow) {
    const axis = { gridcolor: colour("--line"), zeroline: false, linecolor: colour("--line"), fixedrange: true, automargin: true };
    return {
      ...layout,
      xaxis: { ...axis, tickangle: 0, ...(narrow ? thinned(layout.xaxis) : layout.xaxis) },
      yaxis: { ...axis, ...layout.yaxis },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 12, color: colour("--ink") },
      margin: { l: 52, r: 8, t: 8, b: 48 },
      hovermode: "closest",
      hoverlabel: { bgcolor: colour("--paper"), bordercolor: colour("--line"), font: { color: colour("--ink") }, align: "left" },
      legend: narrow ? { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0 } : { x: 1.02, y: 1 },
    };
  }

  // On a phone there is room for a label every eighth of the axis.
  function thinned(axis) {
    const { tickvals, ticktext, range } = axis;
    if (!tickvals) return axis;
    const kept = [tickvals.length - 1];
    for (let i = tickvals.length - 2; i >= 0; i--) {
      if (tickvals[kept[0]] - tickvals[i] >= (range[1] - range[0]) / 8) kept.unshift(i);
    }
    return { ...axis, tickvals: kept.map((i) => tickvals[i]), ticktext: kept.map((i) => ticktext[i]) };
  }

  // --- single images: their curves in the place of the means

  const singles = JSON.parse(document.getElementById("singles").textContent);
  const chosen = {}; // test -> position of an image among those of the test

  function alone(chart, place) {
    const { test, curve } = place.dataset;
    const found = test in chosen && singles[test]?.curves[curve];
    if (!found) return chart;
    const row = chosen[test];
    const data = chart.data
      .filter((trace) => trace.showlegend !== false && found.methods[trace.name])
      .map(({ error_y, customdata, ...trace }) => ({
        ...trace,
        x: found.x,
        y: found.methods[trace.name][row],
        hovertemplate: "<b>%{fullData.name}</b><br>%{x:.3g}: %{y:.3f}<extra></extra>",
      }));
    const { range, ...yaxis } = chart.layout.yaxis;
    return { data, layout: { ...chart.layout, yaxis } };
  }

  function element(name, properties, ...children) {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  }

  const written = (value) => (value === null ? "—" : value.toFixed(3).replace("-", "−"));

  // A name that may be broken after each underscore.
  const breakable = (name) => name.split(/(?<=_)/).flatMap((part) => [part, document.createElement("wbr")]);

  function valuesOf(test, row) {
    const scores = singles[test].names.map((name) => [name, singles[test].scores[name]]);
    const methods = singles[test].methods.filter((method) => scores.some(([, found]) => method in found));
    const head = element("tr", {}, element("th", { scope: "col", textContent: `Image ${singles[test].images[row]}` }));
    head.append(...scores.map(([name]) => element("th", { scope: "col" }, ...breakable(name))));
    const body = methods.map((method) => {
      const cells = scores.map(([, found]) => element("td", { textContent: found[method] ? written(found[method][row]) : "—" }));
      return element("tr", {}, element("th", { scope: "row", textContent: method }), ...cells);
    });
    const table = element("table", {}, element("thead", {}, head), element("tbody", {}, ...body));
    return scores.length ? element("div", { className: "scroll", tabIndex: 0 }, table) : "";
  }

  function choose(bar, row) {
    const { test } = bar.dataset;
    if (row === null) delete chosen[test];
    else chosen[test] = row;
    document.querySelectorAll(`.thumbs[data-test="${test}"]`).forEach((other) => {
      other.querySelectorAll("button").forEach((button) => {
        button.setAttribute("aria-pressed", String(button.dataset.row === String(row ?? "")));
      });
      other.querySelector(".values").replaceChildren(...(row === null ? [] : [valuesOf(test, row)]));
    });
    document.querySelectorAll(`.plot[data-test="${test}"]`).forEach((place) => seen.has(place) && draw(place));
  }

  document.querySelectorAll(".thumbs").forEach((bar) => {
    const { images } = singles[bar.dataset.test];
    const mean = element("button", { type: "button", className: "mean", textContent: "mean of all images" });
    mean.dataset.row = "";
    const buttons = images.map((index, row) => {
      const source = document.querySelector(`[data-picture="${index}"] img`)?.src;
      const inside = source ? element("img", { src: source, alt: `image ${index}` }) : `image ${index}`;
      const button = element("button", { type: "button", title: `image ${index}` }, inside);
      button.dataset.row = String(row);
      return button;
    });
    [mean, ...buttons].forEach((button, place) => {
      button.setAttribute("aria-pressed", String(place === 0));
      button.addEventListener("click", () => choose(bar, place ? place - 1 : null));
    });
    const values = element("div", { className: "values" });
    values.setAttribute("aria-live", "polite");
    bar.append(mean, ...buttons, values);
  });

  // --- drawing: first what is near the window

  function draw(place) {
    const chart = alone(charts[place.dataset.chart], place);
    const narrow = place.clientWidth < 560;
    const entries = chart.data.filter((trace) => trace.showlegend !== false).length;
    const height = place.classList.contains("small") ? 240 : Math.max(360, narrow ? 0 : 27 * entries + 40);
    place.style.height = `${height + (narrow ? 10 * entries : 0)}px`;
    const options = { responsive: true, displaylogo: false, displayModeBar: false };
    Plotly.react(place, chart.data.map(painted), framed(chart.layout, narrow), options);
  }

  const places = [...document.querySelectorAll(".plot")];
  const seen = new Set();
  const show = (place) => {
    if (seen.has(place)) return;
    seen.add(place);
    draw(place);
  };
  const watcher = new IntersectionObserver((entries) => {
    entries.filter((entry) => entry.isIntersecting).forEach(({ target }) => show(target));
  }, { rootMargin: "900px" });
  places.forEach((place) => watcher.observe(place));
  // The rest one by one, but for those that are folded away.
  const rest = places.filter((place) => place.clientWidth);
  const next = () => {
    const place = rest.shift();
    if (place) { show(place); setTimeout(next, 30); }
  };
  setTimeout(next, 200);
  const drawAgain = () => seen.forEach(draw);
  scheme.addEventListener("change", drawAgain);
  window.addEventListener("beforeprint", () => places.forEach(show));
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth !== width) { width = window.innerWidth; drawAgain(); }
  });
})();
