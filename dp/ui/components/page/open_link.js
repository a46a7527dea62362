(opened) => {
  // Draw the run of the link that opened the page, or mark Generate where that takes a click.
  const generate = document.querySelector("#generate");
  if (opened === "draw" && !document.hidden) return generate.click();
  if (!opened) return;
  generate.classList.add("suggested");
  generate.addEventListener("click", () => generate.classList.remove("suggested"), { once: true });
}
