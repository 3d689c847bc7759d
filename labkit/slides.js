// Lays out the slides that nbconvert made, and moves through them: arrows, space, Page Up and Down, Home, End, clicks.
const WIDE = 1280, HIGH = 720, LARGEST = 1.3, SMALLEST = 0.65;
const main = document.querySelector("main"), footer = document.querySelector("footer");
const slides = [...document.querySelectorAll("section section")];
let part = ""; // the heading that slides without one belong to
const column = cells => { const box = document.createElement("div"); box.append(...cells); return box; };

// Its heading, then what is said and what it speaks of: side by side or one above the other, as it can be largest.
function layOut(slide) {
  const heading = slide.querySelector("h1, h2, h3"), cells = [...slide.children];
  const shown = cells.filter(it => it.matches(".jp-CodeCell"));
  const words = cells.filter(it => !shown.includes(it));
  if (heading) slide.prepend(heading);
  if (heading?.matches("h2")) part = heading.textContent;
  slide.dataset.part = part;
  const both = shown.length && words.some(it => it.textContent.trim());
  const body = column(both ? [column(words), column(shown)] : cells);
  slide.append(body);
  const pictures = [...slide.querySelectorAll("img")], tall = it => it.naturalHeight / it.naturalWidth;
  const all = pictures.reduce((sum, it) => sum + tall(it), 0);
  pictures.forEach(it => it.style.setProperty("--share", tall(it) / all)); // of the height that there is
  const sizes = (both ? ["beside", "halves", "above"] : ["alone"]).map(it => [it, largest(slide, body, it)]);
  const [layout, size] = sizes.reduce((best, it) => it[1] > best[1] ? it : best);
  fits(slide, body, layout, Math.max(size, SMALLEST));
  if (size < SMALLEST) { body.classList.add("long"); body.tabIndex = 0; } // a long list, which scrolls
}

function largest(slide, body, layout) {
  let size = LARGEST;
  while (size >= SMALLEST && !fits(slide, body, layout, size)) size -= 0.05;
  return size;
}

function fits(slide, body, layout, size) {
  body.className = `body ${layout}`;
  slide.style.setProperty("--size", size.toFixed(2));
  return slide.scrollHeight <= HIGH && body.scrollWidth <= body.clientWidth;
}

function scale() {
  const times = Math.min(innerWidth / WIDE, innerHeight / HIGH);
  const left = (innerWidth - times * WIDE) / 2, top = (innerHeight - times * HIGH) / 2;
  main.style.transform = `translate(${left}px, ${top}px) scale(${times})`;
}

// Where somebody is, also after a reload: the slide's number and how many of its remarks are shown.
let now = 0, told = 0;
const remarks = () => [...slides[now].querySelectorAll(".fragment")];

function go(slide, remark = 0) {
  now = Math.max(0, Math.min(slides.length - 1, slide));
  told = Math.min(remark, remarks().length);
  slides.forEach((it, k) => { it.classList.toggle("now", k === now); it.inert = k !== now; });
  remarks().forEach((it, k) => it.classList.toggle("now", k < told));
  const where = [document.title, slides[now].dataset.part, `${now + 1} of ${slides.length}`];
  footer.textContent = where.filter(it => it).join(" · ");
  history.replaceState(null, "", `#${now + 1}.${told}`);
}
const on = () => told < remarks().length ? go(now, told + 1) : go(now + 1);
const back = () => told ? go(now, told - 1) : go(now - 1, now ? Infinity : 0);
const keys = {
  ArrowRight: on, ArrowDown: on, PageDown: on, " ": on, ArrowLeft: back, ArrowUp: back, PageUp: back,
  Home: () => go(0), End: () => go(slides.length - 1),
};

addEventListener("keydown", event => {
  const itsOwn = event.target.closest(event.key === " " ? "summary, .long" : ".long");
  if (!keys[event.key] || (itsOwn && !/Left|Right/.test(event.key)) || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  keys[event.key]();
});
addEventListener("click", event => {
  if (!event.target.closest("a, details") && !getSelection().toString()) event.clientX < innerWidth / 3 ? back() : on();
});
addEventListener("resize", scale);
addEventListener("load", () => {
  document.querySelectorAll(".anchor-link").forEach(it => it.remove());
  slides.forEach(layOut);
  scale();
  go(...(location.hash.match(/\d+/g) ?? [1]).map((it, k) => k ? +it : it - 1));
});
