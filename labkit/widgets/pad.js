// A square to draw in, with the mouse or the keyboard: SIDE × SIDE points, of which some have ink.
const SIDE = 32, SCALE = 7;
const STEPS = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };

function render({ model, el }) {
  const size = SIDE * SCALE;
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = size;
  canvas.tabIndex = 0;
  canvas.style.cssText = `width:${size}px;height:${size}px;touch-action:none;cursor:crosshair;border:1px solid #767676`;
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-label", model.get("help"));
  canvas.title = model.get("help");
  el.append(canvas);
  const paper = canvas.getContext("2d");
  let ink = new Set(model.get("ink")), last = null, waits = false;
  let at = [SIDE / 2, SIDE / 4], down = false, keys = true; // the keyboard's pen

  function draw() {
    paper.fillStyle = "white";
    paper.fillRect(0, 0, size, size);
    paper.fillStyle = "#111111";
    for (const point of ink) paper.fillRect((point % SIDE) * SCALE, Math.floor(point / SIDE) * SCALE, SCALE, SCALE);
    if (document.activeElement !== canvas || !keys) return;
    paper.strokeStyle = down ? "#b3261e" : "#1f6fb2";
    paper.lineWidth = 2;
    paper.strokeRect((at[0] - 1) * SCALE, (at[1] - 1) * SCALE, 3 * SCALE, 3 * SCALE);
  }

  // The pen is three points wide, as strokes are in the pictures that the digits come from.
  function dot(x, y) {
    for (let dx = -1; dx <= 1; dx++)
      for (let dy = -1; dy <= 1; dy++) {
        const [px, py] = [Math.round(x) + dx, Math.round(y) + dy];
        if (px >= 0 && px < SIDE && py >= 0 && py < SIDE) ink.add(py * SIDE + px);
      }
  }

  function stroke(from, to) {
    const far = Math.max(1, Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1])));
    const between = (axis, k) => from[axis] + ((to[axis] - from[axis]) * k) / far;
    for (let k = 0; k <= far; k++) dot(between(0, k), between(1, k));
    draw();
    tell();
  }

  function tell() {
    if (waits) return;
    waits = true;
    setTimeout(() => {
      waits = false;
      model.set("ink", [...ink].sort((a, b) => a - b));
      model.save_changes();
    }, 80);
  }

  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    return [x * SIDE - 0.5, y * SIDE - 0.5];
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    keys = down = false;
    last = place(event);
    stroke(last, last);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!last) return;
    const next = place(event);
    stroke(last, next);
    last = next;
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => (last = null));
  for (const name of ["focus", "blur"]) canvas.addEventListener(name, draw);

  // Before JupyterLab, for which these keys mean other cells.
  function pressed(event) {
    if (event.target !== canvas) return;
    const step = STEPS[event.key];
    if (!step && event.key !== " ") return;
    event.preventDefault();
    event.stopPropagation();
    keys = true;
    if (event.key === " ") down = !down;
    const next = step ? at.map((it, k) => Math.min(SIDE - 2, Math.max(1, it + step[k]))) : at;
    if (down) stroke(at, next);
    at = next;
    draw();
  }

  window.addEventListener("keydown", pressed, true);
  model.on("change:ink", () => {
    if (waits) return; // newer strokes are on their way
    ink = new Set(model.get("ink"));
    if (!ink.size) down = false;
    draw();
  });
  draw();
  return () => window.removeEventListener("keydown", pressed, true);
}

export default { render };
