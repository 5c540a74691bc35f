for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
    button.addEventListener("click", () => {
      const number = head.classList.contains("number");
      const before = head.getAttribute("aria-sort");
      const up = before ? before === "descending" : !number;
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const x = key(a), y = key(b);
        if (x === "" || y === "") return (x === "") - (y === "");
        return (number ? x - y : x.localeCompare(y, undefined, {numeric: true})) * (up ? 1 : -1);
      });
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      table.tBodies[0].append(...rows);
    });
  });
}
for (const group of document.querySelectorAll(".curves")) {
  const lines = button => group.querySelectorAll(`.plots [id$="-run${button.dataset.run}"]`);
  for (const button of group.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", on);
      lines(button).forEach(line => line.classList.toggle("off", !on));
    });
    const pick = on => () => {
      group.classList.toggle("picking", on);
      lines(button).forEach(line => line.classList.toggle("picked", on));
    };
    button.addEventListener("pointerenter", pick(true));
    button.addEventListener("pointerleave", pick(false));
  }
}
