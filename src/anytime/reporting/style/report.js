// What a figure says of its points: under the pointer, and by the arrow keys. Without this script each point has a tooltip.
for (const svg of document.querySelectorAll("figure svg")) {
  const points = [...svg.querySelectorAll("title")].map((title) => ({ mark: title.parentNode, text: title.textContent, title }));
  if (!points.length) continue;
  const figure = svg.closest("figure"), tip = document.createElement("p");
  let shown = [], last = 0, places = [];
  tip.className = "tip";
  tip.hidden = true;
  figure.append(tip);
  points.forEach(({ title }) => title.remove());

  const show = (indices) => {
    shown.forEach((i) => points[i].mark.classList.remove("at"));
    shown = indices;
    tip.hidden = !shown.length;
    if (tip.hidden) return;
    last = shown[0];
    shown.forEach((i) => points[i].mark.classList.add("at"));
    const more = shown.length - 6, text = shown.slice(0, 6).map((i) => points[i].text).join("\n") + (more > 0 ? `\nand ${more} more` : "");
    tip.textContent = text;
    tip.style.left = "0";
    const mark = points[last].mark.getBoundingClientRect(), box = figure.getBoundingClientRect();
    const left = mark.left + mark.width / 2 - box.left - tip.offsetWidth / 2;
    tip.style.left = `${Math.max(0, Math.min(left, box.width - tip.offsetWidth))}px`;
    tip.style.top = `${mark.top - box.top - tip.offsetHeight - 8}px`;
    svg.setAttribute("aria-valuenow", last + 1);
    svg.setAttribute("aria-valuetext", text);
  };
  const measure = () => {
    const own = svg.getBoundingClientRect();
    places = points.map(({ mark }) => {
      const box = mark.getBoundingClientRect();
      return [box.left - own.left, box.right - own.left, box.top - own.top, box.bottom - own.top];
    });
  };
  const near = (event) => {
    const own = svg.getBoundingClientRect(), x = event.clientX - own.left, y = event.clientY - own.top;
    const away = places.map(([left, right, top, bottom]) => Math.hypot(Math.max(left - x, 0, x - right), Math.max(top - y, 0, y - bottom)));
    const least = away.reduce((a, b) => Math.min(a, b));
    show(least > 60 ? [] : [...points.keys()].filter((i) => away[i] <= least + 0.5));
  };
  const end = points.length - 1;
  const keys = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -end, End: end };

  svg.tabIndex = 0;
  svg.setAttribute("role", "slider");
  svg.setAttribute("aria-valuemin", 1);
  svg.setAttribute("aria-valuemax", points.length);
  svg.setAttribute("aria-valuenow", 1);
  svg.setAttribute("aria-valuetext", points[0].text);
  svg.addEventListener("pointerenter", measure);
  svg.addEventListener("pointermove", near);
  svg.addEventListener("pointerdown", near);
  svg.addEventListener("pointerleave", () => show([]));
  svg.addEventListener("blur", () => show([]));
  svg.addEventListener("focus", () => svg.matches(":focus-visible") && show([last]));
  svg.addEventListener("keydown", (event) => {
    if (event.key === "Escape") show([]);
    if (!(event.key in keys)) return;
    event.preventDefault();
    show([Math.max(0, Math.min(last + keys[event.key], end))]);
  });
}
