// Every row is listed without this; with it they can be filtered, searched and put in order.
const section = document.getElementById("rows");
if (section) {
  const list = section.querySelector("ol");
  const rows = [...list.children];
  const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  const [search, order] = [section.querySelector("input"), section.querySelector("select")];
  const buttons = [...section.querySelectorAll("button")];
  const told = section.querySelector("output");
  let filter = "";
  const show = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of rows) {
      const fits = !filter || row.dataset.is.split(" ").includes(filter);
      row.hidden = !(fits && words.every((word) => texts.get(row).includes(word)));
      count += !row.hidden;
    }
    told.textContent = `${count} shown`;
  };
  const sort = () => {
    const [name, down] = order.value.split(" ");
    const key = (row) => row.dataset[name];
    list.append(...[...rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      return down ? y - x : x - y;
    }));
  };
  for (const button of buttons) {
    button.addEventListener("click", () => {
      filter = button.dataset.filter;
      for (const each of buttons) each.setAttribute("aria-pressed", String(each === button));
      show();
    });
  }
  search.addEventListener("input", show);
  order.addEventListener("change", sort);
  section.querySelector(".controls").hidden = false;
  show();
}
