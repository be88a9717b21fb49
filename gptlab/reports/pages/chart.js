// Charts of a run's curves, drawn as SVG. A chart shows values under the pointer, and as a slider by the arrow keys.

const AXES = { step: "step", tokens: "tokens", seconds: "seconds of training" };
const ROOM = { left: 62, right: 26, top: 10, bottom: 40 }; // around the lines, in pixels
const HEIGHT = 260;
const FEW = 40; // points of a line, each of which gets a dot

/** Return a number in a few characters. */
function short(number) {
  const size = Math.abs(number);
  if (size >= 1e4) {
    const [unit, name] = [[1e9, "B"], [1e6, "M"], [1e3, "k"]].find(([least]) => size >= least);
    return `${Number((number / unit).toPrecision(4))}${name}`;
  }
  return size && size < 1e-4 ? number.toExponential(2).replace(/\.?0*e/, "e") : String(Number(number.toPrecision(5)));
}

/** One direction of a chart: from numbers to pixels. */
class Scale {
  /** @param {number[]} values what it shows, which is not empty. @param {number} from, to its pixels. */
  constructor(values, isLog, from, to) {
    let low = Infinity, high = -Infinity;
    for (const value of values) [low, high] = [Math.min(low, value), Math.max(high, value)];
    this.to = isLog ? Math.log : (value) => value;
    if (low === high) [low, high] = isLog ? [low / 2, high * 2] : [Math.min(0, 2 * low), Math.max(0, 2 * high) || Number(low === 0)];
    Object.assign(this, { low, high, isLog, from, pixels: (to - from) / (this.to(high) - this.to(low)) });
  }

  at(value) {
    return this.from + (this.to(value) - this.to(this.low)) * this.pixels;
  }

  /** Return where ticks stand. */
  ticks(count) {
    if (this.isLog && this.high / this.low >= 8) return this.factors(count);
    const wide = (this.high - this.low) / count, ten = 10 ** Math.floor(Math.log10(wide));
    const step = ten * [1, 2, 5, 10].find((times) => times * ten >= wide);
    const first = Math.ceil(this.low / step - 1e-9), places = Array.from({ length: 2 * count }, (_, i) => (first + i) * step);
    return places.filter((place) => place <= this.high + step * 1e-9).map((place) => Number(place.toPrecision(12)));
  }

  /** Return the tenfolds between the ends, with their double and their fivefold where there are few. */
  factors(count) {
    const [first, last] = [Math.floor(Math.log10(this.low)), Math.ceil(Math.log10(this.high))];
    const every = Math.ceil((last - first) / count), ticks = [];
    for (let i = first; i <= last; i += every) for (const times of last - first > count / 2 ? [1] : [1, 2, 5]) ticks.push(times * 10 ** i);
    return ticks.filter((tick) => tick >= this.low * (1 - 1e-9) && tick <= this.high * (1 + 1e-9));
  }
}

class Chart {
  /** @param {object} about {title, unit, lines: [column]}. @param {object} curves {axes, lines}, see points.py. */
  constructor(about, curves) {
    Object.assign(this, { about, curves, axis: "step", isLogX: false, stop: null });
    this.legend = make("p", { class: "legend" });
    this.frame = make("div", { class: "frame", role: "slider", tabindex: "0", "aria-valuemin": "0" });
    this.log = make("input", { type: "checkbox" });
    this.log.disabled = !about.lines.some((name) => curves.lines[name].y.some((y) => y > 0));
    const words = about.unit ? [about.title, make("span", {}, about.unit)] : [about.title];
    this.element = make(
      "figure", { class: "chart" },
      make("figcaption", {}, make("h3", {}, ...words), make("label", {}, this.log, "log")),
      this.legend, this.frame,
    );
    this.log.addEventListener("change", () => this.draw());
    this.frame.addEventListener("pointermove", (event) => this.point(event));
    this.frame.addEventListener("pointerdown", (event) => this.point(event));
    this.frame.addEventListener("pointerleave", () => this.mark(null));
    this.frame.addEventListener("blur", () => this.mark(null));
    this.frame.addEventListener("keydown", (event) => this.press(event));
    new ResizeObserver(() => this.draw()).observe(this.frame);
  }

  show(axis, isLogX) {
    Object.assign(this, { axis, isLogX });
    this.draw();
  }

  /** Return the points of a line that can be drawn, in order; y is null where a number is missing. */
  points(name) {
    const { at, y } = this.curves.lines[name], x = this.curves.axes[this.axis];
    return at
      .map((row, i) => ({ x: x[row], y: y[i] }))
      .filter((point) => point.x !== null && !(this.isLogX && point.x <= 0) && !(this.log.checked && point.y !== null && point.y <= 0))
      .sort((a, b) => a.x - b.x);
  }

  draw() {
    const width = this.frame.clientWidth;
    if (!width) return; // it is folded
    this.lines = this.about.lines.map((name) => ({ name, points: this.points(name) }));
    const seen = this.lines.flatMap((line) => line.points).filter((point) => point.y !== null);
    this.stops = [...new Set(this.lines.flatMap((line) => line.points.map((point) => point.x)))].sort((a, b) => a - b);
    this.frame.setAttribute("aria-label", `${this.about.title} by ${AXES[this.axis]}`);
    this.frame.setAttribute("aria-valuemax", String(Math.max(0, this.stops.length - 1)));
    if (!seen.length) {
      this.frame.replaceChildren(make("p", { class: "note" }, "No number here can be drawn on this scale."));
      return;
    }
    this.x = new Scale(this.stops, this.isLogX, ROOM.left, width - ROOM.right);
    this.y = new Scale(seen.map((point) => point.y), this.log.checked, HEIGHT - ROOM.bottom, ROOM.top);
    this.cursor = shape("g", { class: "cursor" });
    const drawing = shape("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, "aria-hidden": "true" }, ...this.grid(width));
    this.lines.forEach((line, i) => drawing.append(...this.line(line, i)));
    drawing.append(this.cursor);
    this.frame.replaceChildren(drawing);
    this.mark(null);
  }

  grid(width) {
    const [left, right, bottom] = [ROOM.left, width - ROOM.right, HEIGHT - ROOM.bottom];
    const across = this.y.ticks(5).flatMap((tick) => [
      shape("line", { class: "grid", x1: left, x2: right, y1: this.y.at(tick), y2: this.y.at(tick) }),
      shape("text", { x: left - 8, y: this.y.at(tick) + 4, "text-anchor": "end" }, short(tick)),
    ]);
    const up = this.x.ticks(width < 480 ? 4 : 7).flatMap((tick) => [
      shape("line", { class: "grid", x1: this.x.at(tick), x2: this.x.at(tick), y1: bottom, y2: bottom + 4 }),
      shape("text", { x: this.x.at(tick), y: bottom + 17, "text-anchor": "middle" }, short(tick)),
    ]);
    const name = shape("text", { x: (left + right) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, AXES[this.axis]);
    return [...across, ...up, name];
  }

  line({ name, points }, i) {
    let path = "", isDrawing = false;
    for (const { x, y } of points) {
      if (y !== null) path += `${isDrawing ? "L" : "M"}${this.x.at(x).toFixed(1)} ${this.y.at(y).toFixed(1)}`;
      isDrawing = y !== null;
    }
    const kind = `line colour-${i % 8}${name.startsWith("train/") ? " thin" : ""}`;
    const dots = points.length > FEW ? [] : points.filter((point) => point.y !== null);
    return [
      shape("path", { class: kind, d: path }),
      ...dots.map(({ x, y }) => shape("circle", { class: `dot colour-${i % 8}`, cx: this.x.at(x), cy: this.y.at(y), r: 2.5 })),
    ];
  }

  point(event) {
    if (!this.stops?.length || !this.x) return;
    const x = event.clientX - this.frame.getBoundingClientRect().left;
    let best = 0;
    this.stops.forEach((stop, i) => {
      if (Math.abs(this.x.at(stop) - x) < Math.abs(this.x.at(this.stops[best]) - x)) best = i;
    });
    this.mark(best);
  }

  press(event) {
    const last = (this.stops?.length ?? 0) - 1, now = this.stop ?? last;
    const goals = { ArrowLeft: now - 1, ArrowRight: now + 1, ArrowDown: now - 1, ArrowUp: now + 1, PageDown: now - 10, PageUp: now + 10, Home: 0, End: last };
    if (last < 0 || !(event.key in goals)) return;
    event.preventDefault();
    this.mark(Math.min(last, Math.max(0, goals[event.key])));
  }

  /** Mark a stop, and say what each line is there; null: nothing is marked, and the last values are said. */
  mark(stop) {
    if (!this.cursor || !this.stops.length) return;
    this.stop = stop;
    const x = this.stops[stop ?? this.stops.length - 1];
    const found = this.lines.map(({ points }) => points.findLast((point) => point.x <= x && point.y !== null));
    const where = `${stop === null ? "at the end, " : ""}${AXES[this.axis]} ${short(x)}`;
    const words = this.lines.map(({ name }, i) => {
      if (!found[i]) return `${name} -`;
      return `${name} ${short(found[i].y)}${found[i].x === x ? "" : ` (at ${short(found[i].x)})`}`;
    });
    this.legend.replaceChildren(
      make("span", {}, where),
      ...words.map((word, i) => make("span", {}, make("i", { class: `key colour-${i % 8}` }), word)),
    );
    this.frame.setAttribute("aria-valuenow", String(stop ?? this.stops.length - 1));
    this.frame.setAttribute("aria-valuetext", [where, ...words].join("; "));
    if (stop === null) return this.cursor.replaceChildren();
    const rule = { x1: this.x.at(x), x2: this.x.at(x), y1: ROOM.top, y2: HEIGHT - ROOM.bottom };
    const dots = found.map((point, i) => point && shape("circle", { class: `dot colour-${i % 8}`, cx: this.x.at(point.x), cy: this.y.at(point.y), r: 4 }));
    this.cursor.replaceChildren(shape("line", rule), ...dots.filter(Boolean));
  }
}
