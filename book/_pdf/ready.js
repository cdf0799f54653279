// Formulas are set, nothing is folded, the title has the number that the sidebar gives it. Chromium stores the places
// that a link on the same page leads to: every name gets one, for the links of other pages.
async () => {
  await window.MathJax?.startup?.promise;
  window.dispatchEvent(new Event("beforeprint"));
  const shown = document.querySelector(".bd-sidebar-primary .current > a.current")?.textContent.trim();
  for (const heading of document.querySelectorAll("h1")) if (shown) heading.replaceChildren(shown);
  for (const { id } of document.querySelectorAll(".bd-article [id]")) {
    const link = document.createElement("a");
    Object.assign(link, { href: "#" + id, hidden: true });
    document.body.append(link);
  }
  return shown || document.querySelector("h1").firstChild.textContent;
}
