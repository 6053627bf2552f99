"use strict";
/* Filters the tables of a report and, if a server follows the run, shows what it sends. */
(() => {
  const form = document.getElementById("filters");
  const report = document.getElementById("report");
  const state = document.getElementById("state");
  const chosen = { model: "", kind: "" };

  /* Offer the names in the tables. The names are data: they never become markup. */
  function offer(select, property) {
    const marked = report.querySelectorAll(`tr[data-${property}]`);
    const names = new Set(Array.from(marked, (row) => row.dataset[property]));
    names.delete("");
    const offered = Array.from(select.options).slice(1);
    if (offered.length !== names.size || offered.some((option) => !names.has(option.value))) {
      offered.forEach((option) => option.remove());
      names.forEach((name) => select.add(new Option(name, name)));
      select.value = names.has(chosen[property]) ? chosen[property] : "";
    }
    chosen[property] = select.value;
    select.parentElement.hidden = names.size < (property === "model" ? 2 : 1);
  }

  function isHidden(row) {
    const { model, kind } = row.dataset;
    /* Rows without a model are sums of all models. Rows without a kind are not about failures. */
    const otherKind = kind !== undefined && kind !== chosen.kind;
    return (chosen.model !== "" && model !== chosen.model) || (chosen.kind !== "" && otherKind);
  }

  function filter() {
    offer(form.elements.model, "model");
    offer(form.elements.kind, "kind");
    form.hidden = Array.from(form.children).every((label) => label.hidden);
    for (const section of report.querySelectorAll("section")) {
      const rows = Array.from(section.querySelectorAll("tbody tr"));
      rows.forEach((row) => { row.hidden = isHidden(row); });
      section.querySelector(".none").hidden = rows.some((row) => !row.hidden);
    }
    for (const bar of report.querySelectorAll("rect[data-kind]")) {
      bar.classList.toggle("pale", chosen.kind !== "" && bar.dataset.kind !== chosen.kind);
    }
    for (const remark of report.querySelectorAll(".unfiltered")) {
      remark.hidden = chosen.model === "" && chosen.kind === "";
    }
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", (event) => {
    chosen[event.target.name] = event.target.value;
    filter();
  });
  form.reset();
  filter();

  if (state !== null) {
    const events = new EventSource("events");
    events.addEventListener("report", (event) => {
      const update = JSON.parse(event.data);
      state.textContent = update.state;
      if (update.content !== null) {
        report.innerHTML = update.content;
        filter();
      }
    });
    events.addEventListener("error", () => {
      state.textContent = "No connection to the report server: these are the last numbers it sent.";
    });
  }
})();
