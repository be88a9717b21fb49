// The text as tokens: each in the colour of its surprisal, with the likeliest ones in its place.

const MOST_BITS = 8; // from here on the colour stays the same
const STRONGEST = 0.6; // of the colour, so that the text stays readable

const byId = (id) => document.getElementById(id);

/** An element with a class and a text. */
function element(name, className, text) {
  const found = document.createElement(name);
  if (className) found.className = className;
  if (text !== undefined) found.textContent = text;
  return found;
}

/** Fill a list of terms with what they are: [[term, value]]. */
function fillFacts(list, facts) {
  list.replaceChildren(...facts.flatMap(([key, value]) => [element("dt", "", key), element("dd", "", value)]));
}

/** A token's text with its white space made visible; of none, its number. */
function visible(text, id) {
  if (text === "") return `#${id}`;
  return text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "␣");
}

/** One token as an element: {id, text, bits, likely, given, special}. */
function tokenElement(token) {
  const found = element("span", "token", token.special ? token.special : token.text);
  found.classList.toggle("given", Boolean(token.given));
  found.classList.toggle("mark", Boolean(token.special));
  found.setAttribute("aria-label", token.special ?? visible(token.text, token.id));
  found.setAttribute("role", "button");
  found.tabIndex = -1;
  colour(found, token);
  return found;
}

function colour(element, token) {
  const bits = token.bits;
  if (bits === undefined) return;
  element.style.setProperty("--level", (Math.min(bits / MOST_BITS, 1) * STRONGEST).toFixed(3));
  element.setAttribute("aria-label", `${visible(token.text, token.id)}, ${bits.toFixed(1)} bits`);
}

/** The tokens of a text, of which one can be reached by Tab and the others from there by the arrow keys. */
class TokenRow {
  /**
   * @param {Element} box where they are shown.
   * @param {Function} onChoose called with a token's number when it is pointed at or focused.
   * @param {Function} onOpen called with a token's number when it is clicked, or Enter is pressed on it.
   */
  constructor(box, onChoose, onOpen) {
    this.box = box;
    this.elements = [];
    const at = (event) => this.elements.indexOf(event.target);
    box.addEventListener("pointerover", (event) => event.pointerType === "mouse" && at(event) >= 0 && onChoose(at(event), true));
    box.addEventListener("focusin", (event) => {
      if (at(event) < 0) return;
      this.reach(at(event));
      onChoose(at(event), false);
    });
    box.addEventListener("click", (event) => at(event) >= 0 && onOpen(at(event), false));
    box.addEventListener("keydown", (event) => {
      const here = at(event);
      if (here < 0) return;
      const last = this.elements.length - 1;
      const to = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: last }[event.key];
      if (to !== undefined) this.elements[Math.max(0, Math.min(to, last))].focus();
      else if (event.key === "Enter" || event.key === " ") onOpen(here, true);
      else return;
      event.preventDefault();
    });
  }

  clear() {
    this.box.replaceChildren();
    this.elements = [];
  }

  add(tokens) {
    const found = tokens.map(tokenElement);
    if (!this.elements.length && found.length) found[0].tabIndex = 0;
    this.elements.push(...found);
    this.box.append(...found);
  }

  cut(count) {
    for (const each of this.elements.splice(count)) each.remove();
    if (this.elements.length && !this.elements.some((each) => each.tabIndex === 0)) this.elements[0].tabIndex = 0;
  }

  /** Let Tab come to this token. */
  reach(number) {
    for (const each of this.elements) if (each.tabIndex === 0) each.tabIndex = -1;
    this.elements[number].tabIndex = 0;
  }
}

/** The likeliest tokens in the place of one, below it. */
class Choices {
  /** @param {Function} onTake called with the number of the place and the id that was chosen. */
  constructor(box, row, onTake) {
    this.box = box;
    this.row = row;
    this.onTake = onTake;
    box.addEventListener("keydown", (event) => {
      const buttons = [...box.querySelectorAll("button")], here = buttons.indexOf(event.target);
      if (event.key === "ArrowDown") buttons[Math.min(here + 1, buttons.length - 1)].focus();
      else if (event.key === "ArrowUp") buttons[Math.max(here - 1, 0)].focus();
      else if (event.key === "Escape") this.row.elements[this.number]?.focus();
      else return;
      event.preventDefault();
    });
    box.parentElement.addEventListener("pointerleave", () => box.parentElement.contains(document.activeElement) || this.hide());
    document.addEventListener("keydown", (event) => event.key === "Escape" && this.hide());
    document.addEventListener("pointerdown", (event) => {
      if (!box.contains(event.target) && !row.box.contains(event.target)) this.hide();
    });
  }

  show(number, token) {
    for (const each of this.row.elements) each.classList.remove("chosen");
    const place = this.row.elements[number];
    place.classList.add("chosen");
    this.number = number;
    const said = token.bits === undefined
      ? `${visible(token.text, token.id)}: begins the text`
      : `${visible(token.text, token.id)}: ${token.bits.toFixed(2)} bits, ${percent(2 ** -token.bits)}`;
    this.box.replaceChildren(element("p", "", said), ...(token.likely || []).map((each) => this.button(each)));
    this.box.hidden = false;
    const paper = this.box.offsetParent.getBoundingClientRect(), at = [...place.getClientRects()].at(-1) || paper;
    const left = Math.min(at.left - paper.left, paper.width - this.box.offsetWidth);
    this.box.style.left = `${Math.max(0, left)}px`;
    this.box.style.top = `${at.bottom - paper.top}px`;
  }

  button({ id, text, probability }) {
    const found = element("button");
    found.type = "button";
    found.append(element("span", "", visible(text, id)), element("span", "", percent(probability)));
    found.style.setProperty("--share", `${(100 * probability).toFixed(1)}%`);
    found.setAttribute("aria-label", `go on with ${visible(text, id)}, ${percent(probability)}`);
    found.addEventListener("click", () => this.onTake(this.number, id));
    return found;
  }

  /** Bring the box into view; from the keyboard, go into it. */
  enter(byKeyboard) {
    this.box.scrollIntoView({ block: "nearest" });
    if (byKeyboard) this.box.querySelector("button")?.focus();
  }

  hide() {
    this.box.hidden = true;
    for (const each of this.row.elements) each.classList.remove("chosen");
  }
}

function percent(share) {
  return `${(100 * share).toFixed(share < 0.1 ? 2 : 1)}%`;
}
