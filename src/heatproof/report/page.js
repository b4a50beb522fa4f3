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

  function draw(place) {
    const chart = charts[place.dataset.chart];
    const narrow = place.clientWidth < 560;
    const entries = chart.data.filter((trace) => trace.showlegend !== false).length;
    const height = place.classList.contains("small") ? 240 : Math.max(360, narrow ? 0 : 27 * entries + 40);
    place.style.height = `${height + (narrow ? 10 * entries : 0)}px`;
    const options = { responsive: true, displaylogo: false, displayModeBar: false };
    Plotly.react(place, chart.data.map(painted), framed(chart.layout, narrow), options);
  }

  const places = [...document.querySelectorAll(".plot")];
  const drawAll = () => places.forEach(draw);
  drawAll();
  scheme.addEventListener("change", drawAll);
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth !== width) { width = window.innerWidth; drawAll(); }
  });
})();
