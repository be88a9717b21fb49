// Tables that are sorted by a click on a heading, or by Enter on it.

const BAR = { width: 120, height: 14 }; // of an interval, in pixels

class SortedTable {
  /** @param {object} about {title, columns, rows: [[{text, sort, href, bar}]]}, see report_page.py. */
  constructor({ title, columns, rows }) {
    this.rows = rows;
    this.isNumber = columns.map((_, i) => rows.some((row) => row[i].sort !== undefined));
    this.turned = { column: -1, isDown: false };
    this.headings = columns.map((name, i) => {
      const button = make("button", { type: "button" }, name || "name");
      button.addEventListener("click", () => this.sort(i));
      return make("th", { scope: "col", ...this.style(i) }, button);
    });
    this.ends = columns.map((_, i) => {
      const all = rows.flatMap((row) => row[i].bar ?? []);
      return [Math.min(...all), Math.max(...all)];
    });
    this.body = make("tbody", {}, ...rows.map((row) => this.row(row)));
    this.elements = [...this.body.children];
    const table = make("table", {}, make("caption", {}, title), make("thead", {}, make("tr", {}, ...this.headings)), this.body);
    this.element = make("div", { class: "wide", role: "region", "aria-label": title, tabindex: "0" }, table);
  }

  style(column) {
    return column && this.isNumber[column] ? { class: "number" } : {};
  }

  row(cells) {
    const made = cells.map((cell, i) => {
      const content = cell.href ? [make("a", { href: cell.href }, cell.text)] : [cell.text];
      if (cell.bar) content.push(this.bar(cell.bar, this.ends[i]));
      const place = i ? make("td", this.style(i)) : make("th", { scope: "row" });
      place.append(...content);
      return place;
    });
    return make("tr", {}, ...made);
  }

  /** Draw a mean with its interval, on the scale of its column. */
  bar([low, mean, high], [least, most]) {
    const at = (value) => 4 + ((value - least) / (most - least || 1)) * (BAR.width - 8), y = BAR.height / 2;
    return shape(
      "svg", { class: "bar", viewBox: `0 0 ${BAR.width} ${BAR.height}`, "aria-hidden": "true" },
      shape("line", { class: "grid", x1: 0, x2: BAR.width, y1: y, y2: y }),
      shape("line", { class: "range", x1: at(low), x2: at(high), y1: y, y2: y }),
      shape("circle", { class: "dot colour-0", cx: at(mean), cy: y, r: 3.5 }),
    );
  }

  /** Sort by a column, and turn its order around if it is sorted by it; rows without a value stay at the end. */
  sort(column) {
    const isDown = this.turned.column === column && !this.turned.isDown;
    this.turned = { column, isDown };
    const order = this.rows.map((_, i) => i);
    order.sort((a, b) => this.compare(this.rows[a][column], this.rows[b][column], column, isDown) || a - b);
    this.body.append(...order.map((i) => this.elements[i]));
    this.headings.forEach((heading, i) => {
      if (i === column) heading.setAttribute("aria-sort", isDown ? "descending" : "ascending");
      else heading.removeAttribute("aria-sort");
    });
  }

  compare(a, b, column, isDown) {
    const turn = isDown ? -1 : 1;
    if (!this.isNumber[column]) return turn * a.text.localeCompare(b.text, "en", { numeric: true });
    if (a.sort === undefined || b.sort === undefined) return (a.sort === undefined) - (b.sort === undefined);
    return turn * (a.sort - b.sort);
  }
}
