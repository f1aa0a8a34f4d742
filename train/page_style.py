"""Looks of a page: light and dark, on a screen, a phone and paper; and the script that draws its charts."""

CSS = """
:root { color-scheme: light dark; --ink: #1f2328; --faint: #59636e; --paper: #ffffff; --card: #f6f8fa; --line: #d1d9e0;
  --accent: #0072b2; --mark: #fff3d6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --faint: #a4acb5; --paper: #14171b; --card: #1c2127; --line: #3a3f47; --accent: #56b4e9;
    --mark: #3d3420; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .5rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p { margin: .4rem 0; } .faint { color: var(--faint); font-size: .9rem; }
.answers { background: var(--card); border-left: 4px solid var(--accent); border-radius: 4px; margin: 1.2rem 0;
  padding: .8rem 1.2rem; } .answers li { margin: .3rem 0; } .answers ul { margin: 0; padding-left: 1.1rem; }
.note { background: var(--mark); border-radius: 4px; padding: .5rem .9rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .9rem; } a { color: var(--accent); }
.wide { overflow-x: auto; } figure { margin: .8rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; } th { color: var(--faint); font-weight: 600; }
.prose td, .prose th { text-align: left; vertical-align: top; }
.prose td:first-child { min-width: 9rem; font-weight: 600; }
tr.marked td { background: var(--mark); font-weight: 600; }
pre { background: var(--card); border-radius: 4px; font-size: .8rem; overflow-x: auto; padding: .8rem; }
code { overflow-wrap: anywhere; } summary { cursor: pointer; padding: .3rem 0; } .chart { width: 100%; }
.still { display: none; max-width: 100%; background: #fff; border-radius: 4px; } .no-script .still { display: block; }
@media (max-width: 40rem) { body { font-size: 15px; } h1 { font-size: 1.35rem; } main { padding: 1rem .8rem 3rem; }
  table { font-size: .75rem; } th, td { padding: .3rem .25rem; } }
@media print {
  :root { --ink: #000; --faint: #444; --paper: #fff; --card: #f4f4f4; --line: #bbb; --accent: #004b78; --mark: #eee; }
  @page { margin: 15mm; } main { max-width: none; padding: 0; }
  nav, .chart, summary, figure h3 { display: none !important; }
  .still { display: block; max-height: 110mm; } figure, tr { break-inside: avoid; } h2, h3 { break-after: avoid; }
  .wide { overflow: visible; } th, td { font-size: .75rem; } pre { white-space: pre-wrap; } }
"""
SCRIPT = """
(function () {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const looks = { false: LIGHT, true: DARK };
  const charts = [...document.querySelectorAll(".chart")];
  if (!window.Plotly) return;
  document.documentElement.classList.remove("no-script");
  const narrow = () => innerWidth < 640;
  for (const div of charts) {
    const figure = JSON.parse(div.querySelector("script").textContent);
    div.textContent = "";
    if (narrow()) {
      figure.layout.font.size = 11;
      // names stand below each other there
      if (figure.layout.showlegend && figure.data.length > 3) figure.layout.height += 19 * figure.data.length;
    }
    Plotly.newPlot(div, figure.data, figure.layout,
      { responsive: true, displaylogo: false, displayModeBar: false });
    Plotly.relayout(div, looks[dark.matches]);
  }
  dark.addEventListener("change", () => charts.forEach((div) => Plotly.relayout(div, looks[dark.matches])));
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => (d.open = true)));
  document.body.dataset.drawn = charts.length;
})();
"""
