// Elements of the page. What is written into them is text, always: names and samples may be anybody's.

const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);

/** Return an element with attributes and children; a string becomes text. */
function make(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** The same for a shape of a drawing. */
function shape(name, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Fill a list of terms with what they are: [[what, value]]. */
function fillFacts(list, facts) {
  list.replaceChildren(...facts.flatMap(([what, value]) => [make("dt", {}, what), make("dd", {}, value)]));
}

/** Fill a list with texts, and show its section if there are some. */
function fillList(section, list, texts) {
  section.hidden = !texts.length;
  list.replaceChildren(...texts.map((text) => make("li", {}, text)));
}
