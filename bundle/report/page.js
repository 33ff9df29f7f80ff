"use strict";
/* On paper there is nothing to open: short tables are open before it is printed. */
window.addEventListener("beforeprint", () => {
  document.querySelectorAll("details.short").forEach((part) => (part.open = true));
});
