"use strict";
// Filters of galleries and the slider over training. The page is whole without them.

function textOf(card) {
  const parts = [...card.querySelectorAll(".q")].map((part) => part.textContent);
  return parts.join(" ").toLowerCase();
}

function startFilters(form) {
  const gallery = document.getElementById(form.dataset.filters);
  const cards = [...gallery.children].map((card) => ({ card, text: textOf(card) }));
  const told = form.querySelector("output");
  const nothing = document.createElement("p");
  nothing.className = "absent nothing";
  nothing.textContent = "Nothing matches.";
  nothing.hidden = true;
  gallery.after(nothing);

  const first = Number(gallery.dataset.first) || Infinity;
  const more = document.createElement("button");
  more.type = "button";
  more.className = "more";
  gallery.after(more);
  let all = false;

  function apply() {
    const words = form.elements.text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = [...form.querySelectorAll("select")].filter((select) => select.value);
    let left = 0;
    for (const { card, text } of cards) {
      const fits =
        words.every((word) => text.includes(word)) &&
        chosen.every((select) => card.dataset[select.name] === select.value);
      left += fits;
      card.hidden = !fits || (!all && left > first);
    }
    more.textContent = `Show all ${left}`;
    more.hidden = all || left <= first;
    told.textContent = `${left} of ${cards.length}`;
    nothing.hidden = left > 0;
  }

  more.addEventListener("click", () => {
    all = true;
    const next = cards.find(({ card }) => card.hidden)?.card;
    apply();
    next?.setAttribute("tabindex", "-1"); // the button is gone: its place is the next card's
    next?.focus({ preventScroll: true });
  });
  for (const name of ["input", "change"]) form.addEventListener(name, apply);
  form.addEventListener("reset", () => setTimeout(apply)); // once the fields are empty
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  apply(); // a browser may remember what was typed
  gallery.classList.add("started");
}

function startSlider(box) {
  const choice = box.querySelector("select");
  const range = box.querySelector("input[type=range]");
  const play = box.querySelector("button");
  const told = box.querySelector(".controls output");
  const inputs = [...box.querySelectorAll(".followed")];
  let timer = 0;

  const frames = () => [...inputs[choice.selectedIndex].querySelectorAll(".frame")];

  function show() {
    inputs.forEach((input, place) => (input.hidden = place !== choice.selectedIndex));
    const all = frames();
    range.max = all.length - 1;
    all.forEach((frame, place) => (frame.hidden = place !== range.valueAsNumber));
    const words = `step ${all[range.valueAsNumber].dataset.step}`;
    range.setAttribute("aria-valuetext", words);
    told.textContent = words;
  }

  // hidden pictures load late: without this each would flash up as the slider comes to it
  function load() {
    for (const frame of frames()) {
      for (const picture of frame.querySelectorAll("img")) picture.loading = "eager";
    }
  }

  function stop() {
    clearInterval(timer);
    timer = 0;
    play.textContent = "Play";
  }

  function start() {
    load();
    if (range.value === range.max) range.value = 0;
    play.textContent = "Stop";
    timer = setInterval(() => {
      range.valueAsNumber += 1;
      show();
      if (range.value === range.max) stop();
    }, 700);
    show();
  }

  range.addEventListener("input", () => {
    stop();
    show();
  });
  choice.addEventListener("change", () => {
    stop();
    show();
    load();
  });
  for (const name of ["focusin", "pointerenter"]) box.addEventListener(name, load);
  play.addEventListener("click", () => (timer ? stop() : start()));
  box.querySelector(".controls").hidden = false;
  range.max = frames().length - 1;
  range.value = range.max;
  show();
}

document.querySelectorAll("[data-filters]").forEach(startFilters);
document.querySelectorAll("[data-slider]").forEach(startSlider);

// "/" goes to the search field of the gallery that is on the screen, or is the next one
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, textarea");
  if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const forms = [...document.querySelectorAll("[data-filters]")];
  const below = (form) =>
    document.getElementById(form.dataset.filters).getBoundingClientRect().bottom > 0;
  const form = forms.find(below) || forms[0];
  if (!form) return;
  event.preventDefault();
  form.elements.text.focus();
});

// what is folded away on the screen is on paper
addEventListener("beforeprint", () => {
  document.querySelectorAll("details.printed").forEach((details) => (details.open = true));
});
