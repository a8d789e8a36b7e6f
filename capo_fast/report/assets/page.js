"use strict";
// The page's data and its theme: the system's, or the other one after a click.

const page = JSON.parse(document.getElementById("data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");

function setTheme(theme) {
  page.theme = theme;
  document.documentElement.dataset.theme = theme;
  document.getElementById("theme").textContent = theme === "dark" ? "Light" : "Dark";
  dispatchEvent(new Event("theme"));
}

function otherTheme() {
  setTheme(page.theme === "dark" ? "light" : "dark");
}

setTheme(dark.matches ? "dark" : "light");
dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
document.getElementById("theme").addEventListener("click", otherTheme);
