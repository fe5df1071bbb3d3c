// Bars of the probabilities, and two charts over the deadline. Names only ever become text.

const SVG = "http://www.w3.org/2000/svg";
const SIDES = { left: 44, right: 14 };

function element(name, attributes = {}, ...children) {
  const made = name.startsWith("svg:") ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const percent = (share) => `${(100 * share).toFixed(share < 0.0995 && share > 0 ? 1 : 0)} %`;
const ms = (value) => `${value < 10 ? value.toFixed(1) : value.toFixed(0)} ms`;

/** One row for each shown class; `show` moves the bars. */
class Bars {
  constructor(list) {
    this.list = list;
    this.rows = [];
  }
  /** Shows these classes: `[{ index, name, colour, right }]`. */
  choose(classes) {
    this.rows = classes.map((shown) => {
      const fill = element("span", { class: `fill ${shown.colour}` }), value = element("span", { class: "value" });
      const name = element("span", { class: "name", title: shown.name }, shown.name);
      const row = element("li", shown.right ? { class: "right" } : {}, name, element("span", { class: "track" }, fill), value);
      return { ...shown, row, fill, value };
    });
    this.list.replaceChildren(...this.rows.map(({ row }) => row));
  }
  show(probabilities) {
    const top = probabilities.indexOf(Math.max(...probabilities));
    for (const { index, row, fill, value } of this.rows) {
      fill.style.width = `${100 * probabilities[index]}%`;
      value.textContent = percent(probabilities[index]);
      row.classList.toggle("top", index === top && new Set(probabilities).size > 1);
    }
  }
}

/** A chart over milliseconds, as wide as its element. */
class Chart {
  constructor(svg, height) {
    Object.assign(this, { svg, height });
  }
  /** Clears the chart, and draws axes up to `longest` milliseconds and to the share `top`. */
  begin(longest, low, top) {
    const width = this.svg.clientWidth || 600, bottom = this.height - 22;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${this.height}`);
    this.svg.replaceChildren();
    this.x = (value) => SIDES.left + (Math.min(value, longest) / longest) * (width - SIDES.left - SIDES.right);
    this.y = (share) => bottom - ((share - low) / (top - low)) * (bottom - 10);
    const ticks = steps(longest, width < 500 ? 4 : 8);
    for (const value of ticks) {
      this.line([[value, low], [value, top]], "grid");
      this.text(this.x(value), this.height - 5, value === ticks.at(-1) ? `${value} ms` : `${value}`, "middle");
    }
    for (const share of [low, (low + top) / 2, top]) {
      this.line([[0, share], [longest, share]], "grid");
      this.text(SIDES.left - 6, this.y(share) + 4, `${Math.round(100 * share)} %`, "end");
    }
  }
  add(name, attributes, ...children) {
    const made = element(name, attributes, ...children);
    this.svg.append(made);
    return made;
  }
  text(x, y, text, anchor) {
    this.add("svg:text", { x, y, "text-anchor": anchor }, text);
  }
  line(points, colour) {
    const path = points.map(([x, y], i) => `${i ? "L" : "M"}${this.x(x).toFixed(1)} ${this.y(y).toFixed(1)}`).join("");
    return this.add("svg:path", { d: path, class: colour });
  }
  /** A line that keeps each value until the next: `[[ms, share]]`, to `longest`. */
  stairs(points, longest, colour) {
    const corners = points.flatMap(([x, y], i) => (i ? [[x, points[i - 1][1]], [x, y]] : [[x, y]]));
    this.line([...corners, [longest, points.at(-1)[1]]], colour);
  }
  dot(x, y, colour, title) {
    this.add("svg:circle", { cx: this.x(x), cy: this.y(y), r: 3.5, class: colour }, element("svg:title", {}, title));
  }
  /** The name of a line, at its end. */
  name(y, text, colour) {
    const shown = text.length > 24 ? `${text.slice(0, 23)}…` : text;
    this.add("svg:text", { x: this.svg.clientWidth - SIDES.right - 6, y, "text-anchor": "end", class: `name ${colour}` }, shown);
  }
  /** The deadline as an upright line. */
  at(value, low, top) {
    this.cursor?.remove();
    this.cursor = this.line([[value, low], [value, top]], "cursor");
  }
  describe(text) {
    this.svg.setAttribute("aria-label", text);
  }
}

/** Round numbers from 0 to at most `longest`, about `count` of them. */
function steps(longest, count) {
  const rough = longest / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough), decimals = Math.max(0, -Math.floor(Math.log10(step)));
  return Array.from({ length: Math.floor(longest / step + 1e-9) + 1 }, (_, i) => Number((i * step).toFixed(decimals)));
}
