// Sliders, pictures and buttons of ipywidgets have no names for who hears the page or moves by keyboard: here they get
// those that stand beside them, as their label, tooltip and icon. One watcher serves the whole page.
function set(element, attribute, value) {
  if (value && element.getAttribute(attribute) !== value) element.setAttribute(attribute, value);
}

// What labkit writes into its PNGs: an iTXt chunk with the picture in words, before the pixels.
function description(source) {
  const bytes = Uint8Array.from(atob(source.slice(source.indexOf(",") + 1).slice(0, 8192)), (it) => it.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  for (let at = 8; at + 8 < bytes.length; at += 12 + view.getUint32(at)) {
    const text = new TextDecoder().decode(bytes.slice(at + 4, at + 8 + view.getUint32(at)));
    if (text.startsWith("iTXtDescription\0")) return text.split("\0").at(-1);
  }
  return null;
}

function nameAll() {
  for (const slider of document.querySelectorAll(".widget-slider")) {
    const label = slider.querySelector(".widget-label");
    const tip = label?.title || slider.title;
    const disabled = slider.querySelector(".noUi-target")?.hasAttribute("disabled");
    for (const handle of slider.querySelectorAll("[role=slider]")) {
      set(handle, "aria-label", label?.textContent.trim() || tip || "value");
      set(handle, "aria-description", tip);
      set(handle, "aria-valuetext", slider.querySelector(".widget-readout")?.textContent.trim()); // not an index
      set(handle, "tabindex", disabled ? "-1" : "0");
    }
  }
  for (const box of document.querySelectorAll(".widget-radio-box")) {
    // Without a common name each radio button is a group of one, which arrows do not leave.
    const group = box.querySelector("input")?.name || `labkit-${Math.random().toString(36).slice(2)}`;
    for (const button of box.querySelectorAll("input")) set(button, "name", group);
    set(box, "role", "radiogroup");
    const whole = box.closest(".widget-radio");
    set(box, "aria-label", whole.querySelector(".widget-label")?.title || whole.title || "Answers");
  }
  for (const own of document.querySelectorAll(".labkit-names")) {
    const pictures = own.closest(".widget-vbox")?.querySelectorAll("img.widget-image") ?? [];
    own.model.get("pictures").forEach((words, k) => pictures[k] && set(pictures[k], "alt", words));
    pictures.forEach((it) => it.classList.add("labkit-picture"));
    for (const [icon, words] of Object.entries(own.model.get("icons"))) {
      for (const it of own.closest(".widget-vbox")?.querySelectorAll(`.widget-play button i.${icon}`) ?? []) {
        set(it.closest("button"), "aria-label", words);
      }
    }
  }
  for (const picture of document.querySelectorAll(".jp-RenderedImage img[src^='data:image/png']:not([alt])")) {
    const words = description(picture.src);
    set(picture, "alt", words);
    if (words !== null) picture.classList.add("labkit-picture");
  }
  for (const bar of document.querySelectorAll(".widget-hprogress .progress")) {
    set(bar, "role", "progressbar");
    set(bar, "aria-label", bar.closest(".widget-hprogress").title || "progress");
    set(bar, "aria-valuenow", String(Math.round(parseFloat(bar.querySelector(".progress-bar")?.style.width) || 0)));
  }
}

function watch() {
  if (window.labkitNames) return;
  // Pictures stand on a white plate: the light of it is turned down where all else is dark.
  const style = document.createElement("style");
  style.textContent = "[data-jp-theme-light='false'] .labkit-picture { filter: brightness(0.87) }";
  document.head.append(style);
  // Arrows move between answers, and not between JupyterLab's cells, which listens at the document.
  const own = (event) => event.key.startsWith("Arrow") && event.target.matches?.(".widget-radio-box input");
  window.addEventListener("keydown", (event) => own(event) && event.stopPropagation(), true);
  let waits = false;
  window.labkitNames = new MutationObserver(() => {
    if (waits) return;
    waits = true;
    setTimeout(() => ((waits = false), nameAll()), 50);
  });
  window.labkitNames.observe(document.body, {
    subtree: true,
    childList: true,
    characterData: true,
    attributes: true,
    attributeFilter: ["disabled", "aria-valuetext", "class", "style"],
  });
}

function render({ model, el }) {
  el.classList.add("labkit-names");
  el.model = model;
  model.on("change:pictures", nameAll);
  watch();
}

export default { render };
