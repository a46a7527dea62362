() => {
  // After a checkpoint was opened from the Train tab: go to the top, and in Denoise draw with it at once.
  requestAnimationFrame(() => {
    scrollTo(0, 0);
    const generate = document.querySelector("#generate");
    if (generate.checkVisibility()) generate.click();
  });
}
