// A map one can hover over: root is its element, items what each point is, sheet how the pictures of all lie side by side.
(function (root, items, sheet) {
  const tip = root.querySelector('.tip'), crop = tip.querySelector('.crop'), text = tip.querySelector('span');
  const points = [...root.querySelectorAll('.point')], zoom = 2;
  let chosen = null;
  function show(point) {
    const item = items[+point.dataset.i], box = root.getBoundingClientRect(), at = point.getBoundingClientRect();
    text.replaceChildren();
    const name = document.createElement('b');
    name.textContent = item.name;
    text.append(name, ...item.lines.flatMap(line => [document.createTextNode(line), document.createElement('br')]));
    crop.style.display = item.tile < 0 ? 'none' : 'block';
    if (item.tile >= 0) {
      const side = sheet.side * zoom, column = item.tile % sheet.columns, row = Math.floor(item.tile / sheet.columns);
      crop.style.width = crop.style.height = side + 'px';
      crop.style.backgroundSize = (sheet.width * zoom) + 'px auto';
      crop.style.backgroundPosition = (-column * side) + 'px ' + (-row * side) + 'px';
    }
    tip.style.display = 'block';
    const left = at.left - box.left + 14, top = at.top - box.top + 14;
    tip.style.left = Math.max(0, Math.min(left, box.width - tip.offsetWidth)) + 'px';
    tip.style.top = (top + tip.offsetHeight > box.height ? Math.max(0, top - tip.offsetHeight - 28) : top) + 'px';
  }
  function hide() { tip.style.display = 'none'; }
  for (const point of points) {
    point.addEventListener('mouseenter', () => show(point));
    point.addEventListener('focus', () => show(point));
    point.addEventListener('click', () => show(point));
    point.addEventListener('mouseleave', hide);
    point.addEventListener('blur', hide);
  }
  for (const button of root.querySelectorAll('.legend button')) {
    button.addEventListener('click', () => {
      chosen = chosen === button.dataset.c ? null : button.dataset.c;
      for (const other of root.querySelectorAll('.legend button')) other.setAttribute('aria-pressed', other.dataset.c === chosen);
      for (const one of [...points, ...root.querySelectorAll('.name')]) one.classList.toggle('dim', chosen !== null && one.dataset.c !== chosen);
    });
  }
})
