(function () {
  if (!window.Plotly) return;
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const draw = (place) => {
    const figure = JSON.parse(place.querySelector("script").textContent);
    const layout = figure.layout || {};
    layout.autosize = true;
    delete layout.width;
    layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)";
    layout.font = Object.assign({}, layout.font, { color: color("--quiet") });
    layout.hoverlabel = { bgcolor: color("--panel"), bordercolor: color("--line"), font: { color: color("--text") } };
    const canvas = place.querySelector("div") || place.appendChild(document.createElement("div"));
    const note = place.querySelector("p");
    if (note) note.remove();
    Plotly.react(canvas, figure.data, layout, { responsive: true, displayModeBar: false, displaylogo: false });
  };
  const all = () => document.querySelectorAll("figure.plotly").forEach(draw);
  all();
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", all);
})();
