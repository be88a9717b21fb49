// The page of a report.

/** Show the pictures; one that is chosen is shown as large as the window, until Escape or a click. */
function showPictures() {
  const zoom = byId("zoom"), large = byId("large");
  byId("pictures").hidden = !data.pictures.length;
  for (const { name, src } of data.pictures) {
    const button = make("button", { type: "button", class: "picture", "aria-label": `Enlarge the picture: ${name}` }, make("img", { src, alt: "" }));
    button.addEventListener("click", () => {
      large.src = src;
      large.alt = name;
      zoom.showModal();
    });
    byId("pictures-list").append(make("figure", {}, button, make("figcaption", {}, name)));
  }
  zoom.addEventListener("click", () => zoom.close());
}

byId("name").textContent = data.name;
byId("status").textContent = data.status;
byId("links").replaceChildren(...data.links.map(([words, href]) => make("a", { href }, words)));
byId("tables").replaceChildren(...data.tables.map((about) => new SortedTable(about).element));
byId("confusions-list").replaceChildren(...data.confusions.map((about) => new SortedTable(about).element));
byId("confusions").hidden = !data.confusions.length;
fillList(byId("notes"), byId("notes-list"), data.notes);
fillList(byId("conditions"), byId("conditions-list"), data.conditions);
byId("left-out").hidden = !data.leftOut.length;
byId("left-out-list").replaceChildren(...data.leftOut.map(([path, why]) => make("li", {}, make("code", {}, path), ` ${why}`)));
showPictures();
document.querySelector("main").hidden = false;
