"""Page: the class board as browsers see it."""

from __future__ import annotations

from labkit.classroom.assignment import FAR
from labkit.classroom.notes import VOTERS

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Class board</title>
<style>body{font:18px/1.4 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
.bar{background:#0072b2;height:1.1em;display:inline-block;vertical-align:middle}
td,th{padding:.1rem .9rem .1rem 0;white-space:nowrap;text-align:left;font-weight:normal}
h2{margin-bottom:.3rem}.quiet,th{color:#666}.out{color:#b3261e}#training{margin-bottom:2rem}
.client{display:inline-block;vertical-align:top;width:12rem;white-space:nowrap;margin:.2rem .4rem .2rem 0;
padding:.3rem .5rem;background:#f3f6f9;
border-left:.35rem solid #0072b2;font-size:15px;line-height:1.35}
.client.waits{border-color:#bbb}.client.bad{border-color:#b3261e}</style>
<h1>Class board</h1><div id="training" hidden><h2>The class trains together</h2><div id="said"></div>
<svg id="curve" viewBox="0 0 640 200" width="640" height="200" role="img"></svg><div id="clients"></div>
<div id="events" class="quiet"></div></div><div id="questions"></div><h2>Checks passed</h2><table id="passed"></table>
<h2>Who is where</h2><table id="lessons"></table>
<script>
const make = (kind, text, parent) => { const it = document.createElement(kind); it.textContent = text;
  parent.appendChild(it); return it };                       // textContent: what students write is never HTML
const rows = (id, pairs) => { const table = document.getElementById(id); table.replaceChildren();
  for (const [name, count] of pairs) { const row = make("tr", "", table);
    make("td", name, row); make("td", count, row) } };
async function show() {
  const answer = await fetch("state" + location.search); if (!answer.ok) return; const state = await answer.json();
  const all = document.getElementById("questions"); all.replaceChildren();
  for (const it of state.questions) {
    make("h2", it.question + (it.unit ? ` (${it.unit})` : ""), all);
    make("div", it.voters + (it.bars.length ? " predictions" : " of @VOTERS@ predictions needed to show them"), all)
      .className = "quiet";
    const table = make("table", "", all), most = Math.max(1, ...it.bars.map(bar => bar[1]));
    for (const [name, count] of it.bars) { const row = make("tr", "", table); make("td", name, row);
      const bar = make("span", "", make("td", "", row)); bar.className = "bar";
      bar.style.width = `${24 * count / most}rem`; make("td", count, row) } }
  rows("passed", Object.entries(state.passed));
  rows("lessons", Object.entries(state.who || state.lessons)) }
const draw = (kind, parent, attributes, text = "") => {
  const it = document.createElementNS("http://www.w3.org/2000/svg", kind); it.textContent = text;
  for (const [name, value] of Object.entries(attributes)) it.setAttribute(name, value); parent.appendChild(it) };
const amount = bytes => bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
const switched = it => [{mean: "plain mean", median: "median", trimmed: `mean without ${it.bad} at each end`,
  krum: `Krum against ${it.bad}`}[it.rule], it.clip ? `clipped to ${it.clip}, noise ${it.noise}` : "",
  it.masks ? "masked: nobody sees a single update" : ""].filter(Boolean).join(" · ");
const words = {waiting: "waits for clients", training: "clients train", masking: "clients mask and send",
  adding: "updates are added up", ended: "has ended"};
const label = {"text-anchor": "end", "font-size": 14, fill: "#666"};
function curve(training) {
  const svg = document.getElementById("curve"), x = n => 60 + 560 * n / training.rounds, y = a => 175 - 160 * a;
  svg.replaceChildren();
  for (const share of [0, .5, 1]) {
    draw("line", svg, {x1: 60, x2: 620, y1: y(share), y2: y(share), stroke: "#ddd"});
    draw("text", svg, {x: 52, y: y(share) + 5, ...label}, `${100 * share} %`) }
  draw("text", svg, {x: 620, y: 195, ...label}, `round ${training.rounds}`);
  const points = [[0, training.start], ...training.rows.map(row => [row.round, row.accuracy])];
  draw("polyline", svg, {points: points.map(([n, a]) => `${x(n)},${y(a)}`).join(" "), fill: "none", stroke: "#0072b2",
    "stroke-width": 3});
  const [n, a] = points.at(-1); draw("circle", svg, {cx: x(n), cy: y(a), r: 5, fill: "#0072b2"}) }
function client(it, parent) {
  const box = make("div", "", parent), late = ["late", "left", "refused"].includes(it.state);
  make("div", it.name ? `${it.client} · ${it.name}` : `client ${it.client}`, box);
  make("div", `${it.state} · ${it.rounds} rounds`, box).className = "quiet";
  make("div", `↑ ${amount(it.up)} ↓ ${amount(it.down)}`, box).className = "quiet";
  if (it.distance !== null)
    make("div", `${it.distance.toFixed(1)} × typical distance`, box).className = it.distance > @FAR@ ? "out" : "quiet";
  if (it.outvoted) make("div", `outvoted ${it.outvoted} ×`, box).className = "out";
  box.className = it.outvoted ? "client bad" : late ? "client waits" : "client" }
async function watch() {
  const answer = await fetch("federation/state" + location.search); if (!answer.ok) return;
  const {training} = await answer.json(), last = training && training.rows.at(-1);
  document.getElementById("training").hidden = !training; if (!training) return;
  const said = document.getElementById("said"); said.replaceChildren();
  const taken = training.clients.length, places = training.settings.clients;
  make("div", `Round ${training.round} of ${training.rounds}: ${words[training.phase]} · ${taken} of ${places} places` +
    (last ? ` · accuracy ${(100 * last.accuracy).toFixed(1)} % on all classes` : "") +
    (last ? ` · ${amount(last.bytes)} sent` : ""), said);
  make("div", switched(training.settings), said).className = "quiet";
  curve(training);
  const all = document.getElementById("clients"); all.replaceChildren();
  for (const it of training.clients) client(it, all);
  const events = document.getElementById("events"); events.replaceChildren();
  for (const it of training.events.slice(-4).reverse()) make("div", it, events) }
show(); setInterval(show, 3000); watch(); setInterval(watch, 1000);
</script></html>""".replace("@VOTERS@", str(VOTERS)).replace("@FAR@", f"{FAR:g}")
