"use strict";
// One comparison at a time. All text goes in as text nodes, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const items = data.items;
const store = "slm_ray-rating-" + data.page;
const at = (id) => document.getElementById(id);
const KEYS = { 1: "left", 2: "right", 0: "tie", b: "both_bad", B: "both_bad" };
const NAMES = { left: "text 1 is better", right: "text 2 is better", tie: "equally good", both_bad: "both bad" };

const state = { rater: "", ratings: {}, place: 0, saved: 0 };

function restore() {
  try {
    const kept = JSON.parse(localStorage.getItem(store));
    if (!kept || typeof kept !== "object") return;
    const known = new Set(items.map((item) => item.item));
    state.rater = String(kept.rater || "");
    for (const [item, rating] of Object.entries(kept.ratings || {})) {
      if (known.has(item) && rating && rating.choice in NAMES) state.ratings[item] = rating;
    }
    state.saved = Number(kept.saved) || 0;
  } catch { forgets(); }
  const first = items.findIndex((item) => !(item.item in state.ratings));
  state.place = first < 0 ? items.length - 1 : first;
}

function keep() {
  try { localStorage.setItem(store, JSON.stringify(state)); } catch { forgets(); }
}

function forgets() {
  say("This browser keeps nothing between visits: press Save ratings before you close the page.");
}

function say(text) {
  at("note").textContent = text;
  at("note").hidden = !text;
}

// A space that only parts a text from its beginning is not shown; after a new line, spaces indent.
function put(id, text, indents = true) {
  const empty = text.trim() === "";
  const shown = (indents ? text : text.replace(/^ +/, "")).trimEnd();
  at(id).textContent = empty ? "(nothing was written)" : shown;
  at(id).classList.toggle("empty", empty);
}

function numberRated() {
  return Object.keys(state.ratings).length;
}

function show() {
  const item = items[state.place];
  put("prompt", item.prompt);
  put("left", item.left, item.prompt.endsWith("\n"));
  put("right", item.right, item.prompt.endsWith("\n"));
  const rating = state.ratings[item.item];
  document.querySelectorAll("[data-choice]").forEach((button) => {
    button.setAttribute("aria-pressed", String(Boolean(rating) && rating.choice === button.dataset.choice));
  });
  at("back").disabled = state.place === 0;
  at("next").disabled = state.place === items.length - 1;
  at("count").textContent = `Comparison ${state.place + 1} of ${items.length}; ${numberRated()} rated`;
  at("progress").max = items.length;
  at("progress").value = numberRated();
  const due = numberRated() === items.length && state.saved < numberRated();
  at("save").classList.toggle("due", due);
  if (due) {
    say("All are rated. Thank you! Press Save ratings and send the file back.");
    window.scrollTo(0, 0);
  }
}

function go(step) {
  const place = state.place + step;
  if (place < 0 || place >= items.length) return;
  state.place = place;
  show();
  at("spoken").textContent = at("count").textContent;
  at("main").scrollIntoView();
}

function choose(choice) {
  state.ratings[items[state.place].item] = { choice };
  state.saved = 0;
  keep();
  if (state.place < items.length - 1) go(1); else show();
  at("spoken").textContent = `${NAMES[choice]}. ${at("count").textContent}`;
}

function save() {
  const rater = at("rater").value.trim();
  if (!rater) {
    say("Type your name first: it tells the ratings of several people apart.");
    at("rater").focus();
    return;
  }
  const ratings = items.filter((item) => item.item in state.ratings)
    .map((item) => ({ item: item.item, ...state.ratings[item.item] }));
  const whole = { version: data.version, page: data.page, rater, ratings };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(whole, null, 1) + "\n"], { type: "application/json" }));
  link.download = `ratings-${rater.replace(/[^\p{L}\p{N}]+/gu, "-")}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  state.saved = ratings.length;
  keep();
  show();
  say(`Saved ${ratings.length} of ${items.length} ratings as ${link.download}.`);
}

document.querySelectorAll("[data-choice]").forEach((button) => {
  button.addEventListener("click", () => choose(button.dataset.choice));
});
at("back").addEventListener("click", () => go(-1));
at("next").addEventListener("click", () => go(1));
at("save").addEventListener("click", save);
at("rater").addEventListener("input", () => { state.rater = at("rater").value; keep(); });
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.target === at("rater")) return;
  if (event.key in KEYS) choose(KEYS[event.key]);
  else if (event.key === "ArrowLeft") go(-1);
  else if (event.key === "ArrowRight") go(1);
  else return;
  event.preventDefault();
});

restore();
at("rater").value = state.rater;
at("main").hidden = at("actions").hidden = false;
show();
