// Let files be dropped on an element, which has the class `over` while they are dragged across it.
function createDropZone(zone, onDrop) {
  for (const type of ["dragover", "dragleave", "drop"])
    zone.addEventListener(type, (event) => {
      event.preventDefault();
      zone.classList.toggle("over", type === "dragover");
      if (type === "drop") onDrop(event.dataTransfer);
    });
}
