// Tasks on the lanes of workers, as SVG: a bar is dragged to another lane, or moved by the arrow keys when it has the
// focus. Bars are kept while they move, so that the focus stays where it was.
const SVG = "http://www.w3.org/2000/svg";
const WIDE = 792, LEFT = 72, RIGHT = 16, LANE = 40, BAR = 30, TOP = 18;

function element(name, attributes, parent) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  parent?.append(made);
  return made;
}

function render({ model, el }) {
  const svg = element("svg", { role: "group", style: "width:100%;display:block;touch-action:none" }, null);
  el.classList.add("labkit-gantt");
  el.append(svg);
  let bars = [], dragged = null;

  const height = () => TOP + model.get("lanes").length * LANE + 22;

  function move(task, worker) {
    if (worker < 0 || worker >= model.get("lanes").length || worker === model.get("worker")[task]) return;
    model.set("worker", model.get("worker").with(task, worker));
    model.save_changes();
  }

  function bar(task) {
    const group = element("g", { tabindex: "0", role: "button", style: "cursor:grab" }, svg);
    group.rect = element("rect", { height: BAR, rx: 3, stroke: "white", "stroke-width": 1.5 }, group);
    group.word = element("text", { "text-anchor": "middle", "font-size": 13, y: BAR / 2 + 5 }, group);
    group.word.style.pointerEvents = "none";
    group.task = task;
    group.addEventListener("focus", () => group.rect.setAttribute("stroke", "currentColor"));
    group.addEventListener("blur", () => group.rect.setAttribute("stroke", "white"));
    group.addEventListener("pointerdown", (event) => {
      group.setPointerCapture(event.pointerId);
      group.focus();
      dragged = { group, x: event.clientX, y: event.clientY, scale: WIDE / svg.getBoundingClientRect().width };
      group.style.cursor = "grabbing";
    });
    group.addEventListener("pointermove", (event) => {
      if (dragged?.group !== group) return;
      dragged.dx = (event.clientX - dragged.x) * dragged.scale;
      dragged.dy = (event.clientY - dragged.y) * dragged.scale;
      group.setAttribute("transform", `translate(${group.at[0] + dragged.dx} ${group.at[1] + dragged.dy})`);
    });
    const drop = () => {
      if (dragged?.group !== group) return;
      const worker = Math.floor((group.at[1] + (dragged.dy ?? 0) + BAR / 2 - TOP) / LANE);
      dragged = null;
      group.style.cursor = "grab";
      place();
      move(task, worker);
    };
    group.addEventListener("pointerup", drop);
    group.addEventListener("pointercancel", drop);
    return group;
  }

  function build() {
    svg.replaceChildren();
    const lanes = model.get("lanes");
    svg.setAttribute("viewBox", `0 0 ${WIDE} ${height()}`);
    svg.setAttribute("aria-label", model.get("help"));
    for (let lane = 0; lane < lanes.length; lane++) {
      const y = TOP + lane * LANE;
      const box = { x: LEFT, y, width: WIDE - LEFT - RIGHT, height: LANE - 4, fill: "currentColor", opacity: 0.06 };
      element("rect", box, svg);
      const word = element("text", { x: 0, y: y + LANE / 2 + 3, "font-size": 13, fill: "currentColor" }, svg);
      word.textContent = lanes[lane];
    }
    bars = model.get("costs").map((_, task) => bar(task));
    svg.lines = ["makespan", "bound"].map((name) => {
      const colour = name === "bound" ? "currentColor" : model.get("alarm");
      const line = element("line", { y1: TOP - 6, y2: height() - 16, stroke: colour, "stroke-width": 2 }, svg);
      if (name === "bound") line.setAttribute("stroke-dasharray", "5 4");
      const y = name === "bound" ? 11 : height() - 3;
      const word = element("text", { y, "font-size": 12, fill: "currentColor" }, svg);
      return { name, line, word };
    });
    place();
  }

  function place() {
    const costs = model.get("costs"), worker = model.get("worker"), colours = model.get("colours");
    if (bars.length !== costs.length || worker.length !== costs.length) return build();
    const total = costs.reduce((sum, it) => sum + it, 0);
    const most = Math.max(2.2 * model.get("bound"), 1.06 * model.get("makespan"), 0.3 * total) || 1;
    const scale = (WIDE - LEFT - RIGHT) / most;
    const free = new Array(model.get("lanes").length).fill(0);
    costs.forEach((cost, task) => {
      const group = bars[task], lane = worker[task];
      group.at = [LEFT + free[lane] * scale, TOP + lane * LANE + (LANE - 4 - BAR) / 2];
      group.setAttribute("transform", `translate(${group.at[0]} ${group.at[1]})`);
      group.rect.setAttribute("width", Math.max(2, cost * scale));
      group.rect.setAttribute("fill", colours[task % colours.length]);
      group.word.setAttribute("fill", model.get("inks")[task % colours.length]);
      group.word.setAttribute("x", (cost * scale) / 2);
      group.word.textContent = cost * scale > 14 ? task : "";
      group.setAttribute("aria-label", `${model.get("tasks")[task]}, ${model.get("lanes")[lane]}`);
      free[lane] += cost;
    });
    for (const { name, line, word } of svg.lines ?? []) {
      const at = LEFT + model.get(name) * scale;
      line.setAttribute("x1", at);
      line.setAttribute("x2", at);
      word.setAttribute("x", Math.min(at + 4, WIDE - 118));
      word.textContent = model.get("marks")[name];
    }
  }

  // Before JupyterLab, which moves from cell to cell with the same keys.
  function pressed(event) {
    const group = bars.find((it) => it === event.target);
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!group || !step) return;
    event.preventDefault();
    event.stopPropagation();
    move(group.task, model.get("worker")[group.task] + step);
  }

  window.addEventListener("keydown", pressed, true);
  for (const it of ["costs", "lanes"]) model.on(`change:${it}`, build);
  for (const it of ["worker", "marks"]) model.on(`change:${it}`, place);
  build();
  return () => window.removeEventListener("keydown", pressed, true);
}

export default { render };
