// Scans in three planes with attention, labels and marks over them, drawn by NiiVue from what the page holds.
(async () => {
  'use strict';
  const exhibits = JSON.parse(document.getElementById('data').textContent);
  const find = selector => document.querySelector(selector);
  const bar = find('.bar'), place = find('.place'), aside = find('aside'), canvas = find('#view'), svg = find('.marks');
  const nv = new niivue.Niivue({ isRadiologicalConvention: true, sagittalNoseLeft: true, isOrientCube: false, show3Dcrosshair: false,
    crosshairWidthUnit: 'mm', crosshairColor: [0.4, 0.8, 1, 0.7], fontColor: [1, 1, 1, 1], showAllOrientationMarkers: true, backColor: [0, 0, 0, 1], dragAndDropEnabled: false, tileMargin: 2,
    atlasOutline: 1, logLevel: 'error' });
  await nv.attachToCanvas(canvas);
  nv.addColormap('above', { R: [255, 255], G: [128, 128], B: [13, 13], A: [0, 190], I: [0, 255] });
  nv.addColormap('below', { R: [26, 26], G: [128, 128], B: [242, 242], A: [0, 190], I: [0, 255] });
  nv.setSliceType(nv.sliceTypeMultiplanar);
  // The axial slice is what is read: it is the largest.
  function arrange() {
    const [axial, coronal, sagittal] = canvas.clientWidth > 1.15 * canvas.clientHeight
      ? [[0, 0, 0.62, 1], [0.62, 0, 0.38, 0.5], [0.62, 0.5, 0.38, 0.5]] : [[0, 0, 1, 0.58], [0, 0.58, 0.5, 0.42], [0.5, 0.58, 0.5, 0.42]];
    nv.setCustomLayout([{ sliceType: 0, position: axial }, { sliceType: 1, position: coronal }, { sliceType: 2, position: sagittal }]);
    // About two pixels on the smallest slice: thinner lines vanish between pixels.
    nv.setCrosshairWidth(1.6 * Math.max(...nv.screenSlices.filter(tile => tile.fovMM).map(tile => Math.abs(tile.fovMM[0] / tile.leftTopWidthHeight[2]))));
  }

  const element = (name, attributes = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) if (value !== null) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };
  const read = (base64, name, more = {}) => niivue.NVImage.loadFromBase64({ base64, name, ...more });
  const reading = { mm: [0, 0, 0], value: 0, attention: null, label: null };
  let data, scan, over, state;

  // What lies over the scan: attention below, labels above. Held as distance from uniform: 0 is clear, above orange, below blue.
  async function layOver() {
    for (const kind of ['attention', 'truth', 'labels']) if (over[kind]) nv.removeVolume(over[kind]);
    over = { attention: null, truth: null, labels: null };
    if (data.attention && state.shown) {
      const reach = endOfColours(), low = state.threshold * reach;
      over.attention = await read(data.attention.maps[state.head], 'attention.nii.gz', {
        colormap: 'above', colormapNegative: 'below', cal_min: reach, cal_max: reach * 1.001,
        cal_minNeg: -reach * 1.001, cal_maxNeg: -reach, opacity: state.opacity.attention });
      // NiiVue draws whatever an overlay's colours are not clear at as opaque, but fades values below cal_min, by the square of their share.
      over.attention.colormapType = 1;
      if (low > 0) {
        over.truth = await read(data.attention.maps[state.head], 'truth.nii.gz', { opacity: 0 });
        over.attention.img = over.attention.img.map(value => Math.abs(value) < low ? 0 : value);
        nv.addVolume(over.truth);
      }
      nv.addVolume(over.attention);
    }
    if (data.labels.length && state.shown) {
      const layer = data.labels[state.map];
      over.labels = await read(layer.map, 'labels.nii.gz', { opacity: state.opacity.labels });
      over.labels.setColormapLabel(layer.colors);
      // Not by a clear colour: the outline would stay.
      if (state.hidden.size) over.labels.img = over.labels.img.map(code => state.hidden.has(layer.colors.labels[code]) ? 0 : code);
      nv.addVolume(over.labels);
    }
    nv.createOnLocationChange();
  }

  // Near-uniform maps look uniform, unless the reader asks for their order.
  const endOfColours = () => state.stretched ? data.attention.own : data.attention.reach;

  function fade(kind, opacity) {
    state.opacity[kind] = opacity;
    const at = nv.volumes.indexOf(over[kind]);
    if (at > 0) nv.setOpacity(at, opacity);
  }

  function setWindow(name) {
    [scan.cal_min, scan.cal_max] = data.windows[name];
    pressWindow();
    nv.updateGLVolume();
  }

  function pressWindow() {
    for (const button of bar.querySelectorAll('[data-window]')) {
      button.setAttribute('aria-pressed', String(data.windows[button.dataset.window] + '' === [scan.cal_min, scan.cal_max] + ''));
    }
  }

  function readAt(x, y, z) {
    nv.scene.crosshairPos = nv.mm2frac([x, y, z]);
    nv.createOnLocationChange();
    return reading;
  }

  function go(x, y, z) {
    readAt(x, y, z);
    nv.drawScene();
  }

  function select(called, names, value, change) {
    const made = element('select', { 'aria-label': called });
    names.forEach((name, i) => made.append(element('option', { value: i }, name)));
    made.value = value;
    made.addEventListener('change', () => change(Number(made.value)));
    bar.append(element('label', {}, `${called} `, made));
    return made;
  }

  function slide(text, value, say, change) {
    const input = element('input', { type: 'range', min: 0, max: 1, step: 0.05, value }), said = element('output', {}, say(value));
    input.addEventListener('input', () => { said.textContent = say(Number(input.value)); change(Number(input.value)); });
    bar.append(element('label', {}, `${text} `, input, said));
  }

  function buildBar() {
    bar.replaceChildren();
    if (exhibits.length > 1) {
      select('Scan', exhibits.map(one => one.title), exhibits.indexOf(data), at => { location.hash = exhibits[at].name; });
    }
    const windows = element('div', { class: 'group', role: 'group', 'aria-label': 'Window' });
    for (const [name, [low, high]] of Object.entries(data.windows)) {
      const title = `level ${Math.round((low + high) / 2)}, width ${Math.round(high - low)}${data.unit}`;
      const button = element('button', { type: 'button', 'data-window': name, title }, name);
      button.addEventListener('click', () => setWindow(name));
      windows.append(button);
    }
    bar.append(windows);
    if (data.attention) {
      const heads = data.attention.maps.map((_, i) => i ? `head ${i}` : 'mean of heads');
      if (heads.length > 1) select('Attention', heads, state.head, at => { state.head = at; layOver(); });
      else bar.append(element('span', {}, 'Attention'));
      if (data.attention.own < data.attention.reach) {
        const stretch = element('button', { type: 'button', 'data-stretch': '', 'aria-pressed': String(state.stretched),
          title: `Let the colours end at 1 ± ${data.attention.own.toPrecision(2)}: an order of small differences` }, `colours to 1 ± ${endOfColours().toPrecision(2)}`);
        stretch.addEventListener('click', () => { state.stretched = !state.stretched; buildBar(); pressWindow(); layOver(); });
        bar.append(stretch);
      }
      slide('beyond', state.threshold, at => `1 ± ${(at * endOfColours()).toPrecision(2)}`, at => { state.threshold = at; layOver(); });
      slide('opacity', state.opacity.attention, at => `${Math.round(100 * at)} %`, at => fade('attention', at));
    }
    if (data.labels.length > 1) {
      state.select = select('Labels', data.labels.map(one => one.called), state.map, at => { state.map = at; buildPanel(); layOver(); });
    }
    if (data.labels.length) slide('fill of labels', state.opacity.labels, at => `${Math.round(100 * at)} %`, at => fade('labels', at));
  }

  // TotalSegmentator's names are long: a line may end behind an underscore.
  const breakable = name => name.split(/(?<=_)/).flatMap((part, at) => at ? [element('wbr'), part] : [part]);

  function listed(title, rows) {
    if (rows.length) aside.append(element('h2', {}, title), element('ul', {}, ...rows));
  }

  function buildPanel() {
    aside.replaceChildren();
    listed(`Marks (${data.marks.length})`, data.marks.map((mark, at) => {
      const button = element('button', { type: 'button', 'data-mark': at }, mark.name);
      button.addEventListener('click', () => goToMark(at));
      return element('li', {}, button, element('span', {}, mark.diameter === null ? '' : `${mark.diameter.toFixed(1)} mm`));
    }));
    const layer = data.labels[state.map];
    listed(layer ? `${layer.called[0].toUpperCase()}${layer.called.slice(1)}` : '', !layer ? [] : layer.structures.map(one => {
      const box = element('input', { type: 'checkbox', 'aria-label': `Show ${one.name}`, checked: state.hidden.has(one.name) ? null : '' });
      box.addEventListener('change', () => { state.hidden[box.checked ? 'delete' : 'add'](one.name); layOver(); });
      const button = element('button', { type: 'button', 'data-structure': one.name, title: `value ${one.value}`, disabled: one.point ? null : '' }, ...breakable(one.name));
      button.addEventListener('click', () => go(...one.point));
      return element('li', {}, box, element('i', { class: 'swatch', style: `background:${one.color}` }), button, element('span', {}, `${Number(one.ml.toPrecision(3))} ml`));
    }));
    aside.hidden = !aside.childElementCount;
  }

  function goToMark(at) {
    if (!data.marks.length) return;
    state.mark = (at + data.marks.length) % data.marks.length;
    for (const button of aside.querySelectorAll('[data-mark]')) button.setAttribute('aria-pressed', String(Number(button.dataset.mark) === state.mark));
    go(...data.marks[state.mark].mm);
  }

  // Where a sphere meets a plane there is a circle; of a mark without a diameter one of 10 mm is drawn, dashed.
  const turned = (point, plane) => plane === 1 ? [point[0], point[2], point[1]] : plane === 2 ? [point[1], point[2], point[0]] : point;
  function drawMarks() {
    if (!data) return;
    const drawn = [], scale = canvas.clientWidth / canvas.width;
    const add = (name, attributes, text = '') => {
      const made = document.createElementNS('http://www.w3.org/2000/svg', name);
      for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
      made.textContent = text;
      drawn.push(made);
    };
    for (const tile of state.shown && data.marks.length ? nv.screenSlices : []) {
      if (tile.axCorSag > 2 || !tile.fovMM) continue;
      const at = turned([...nv.frac2mm(nv.scene.crosshairPos)], tile.axCorSag);
      let [left, top, width, height] = tile.leftTopWidthHeight;
      const mirrored = width < 0;
      if (mirrored) [left, width] = [left + width, -width];
      data.marks.forEach((mark, number) => {
        const point = turned([...nv.frac2mm(nv.mm2frac(mark.mm))], tile.axCorSag), radius = (mark.diameter ?? 10) / 2;
        const squared = radius ** 2 - (point[2] - at[2]) ** 2;
        if (squared <= 0) return;
        let x = (point[0] - tile.leftTopMM[0]) / tile.fovMM[0];
        const y = 1 - (point[1] - tile.leftTopMM[1]) / tile.fovMM[1];
        if (x < 0 || x > 1 || y < 0 || y > 1) return;
        if (mirrored) x = 1 - x;
        const [cx, cy] = [(left + x * width) * scale, (top + y * height) * scale];
        const r = Math.sqrt(squared) * width / Math.abs(tile.fovMM[0]) * scale;
        add('circle', { cx, cy, r: Math.max(r, 2), class: mark.diameter === null ? 'unsized' : '', 'data-mark': number, 'data-plane': tile.axCorSag });
        if (tile.axCorSag === 0) add('text', { x: cx + r * 0.71 + 3, y: cy - r * 0.71 - 3 }, mark.name);
      });
    }
    svg.replaceChildren(...drawn);
  }
  const drawScene = nv.drawScene.bind(nv);
  nv.drawScene = (...given) => { const result = drawScene(...given); drawMarks(); return result; };

  nv.onLocationChange = location => {
    const [x, y, z] = location.mm, layer = data.labels[state.map];
    // Beyond a volume's end NiiVue gives its last voxel.
    const holds = volume => [...volume.mm2vox([x, y, z], true)].every((at, axis) => at >= -0.5 && at < volume.dimsRAS[axis + 1] - 0.5);
    const valueOf = volume => { const at = nv.volumes.indexOf(volume); return at < 0 || !location.values[at] || !holds(volume) ? null : location.values[at].value; };
    const value = valueOf(scan) ?? 0;
    Object.assign(reading, { mm: [x, y, z], value, attention: valueOf(over.truth ?? over.attention), label: over.labels ? layer.colors.labels[Math.round(valueOf(over.labels) ?? 0)] : null });
    const at = (low, high, mm) => `${mm < 0 ? low : high} ${Math.abs(mm).toFixed(1)}`;
    let text = `${at('L', 'R', x)}  ${at('P', 'A', y)}  ${at('I', 'S', z)} mm:  ${Number(value.toFixed(1))}${data.unit}`;
    if (reading.attention !== null) text += `, attention ${(1 + reading.attention).toFixed(3)} times uniform`;
    if (reading.label !== null) text += `, ${reading.label || 'no structure'}`;
    place.textContent = text;
  };

  const moves = { ArrowLeft: [1, 0, 0], ArrowRight: [-1, 0, 0], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0], PageUp: [0, 0, 1], PageDown: [0, 0, -1] };
  document.addEventListener('keydown', event => {
    if (['SELECT', 'INPUT'].includes(event.target.nodeName) || event.ctrlKey || event.metaKey || event.altKey) return;
    const window = Object.keys(data.windows)['123'.indexOf(event.key)];
    if (moves[event.key]) nv.moveCrosshairInVox(...moves[event.key]);
    else if (window) setWindow(window);
    else if (event.key === 'o') { state.shown = !state.shown; layOver().then(drawMarks); }
    else if (event.key === 'm' && data.labels.length > 1) {
      state.select.value = state.map = (state.map + 1) % data.labels.length;
      buildPanel();
      layOver();
    } else if (event.key === 'n') goToMark(state.mark + 1);
    else if (event.key === 'p') goToMark(Math.max(state.mark, 0) - 1);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }, true);

  async function open() {
    while (nv.volumes.length) nv.removeVolume(nv.volumes[0]);
    data = exhibits.find(one => one.name === decodeURIComponent(location.hash.slice(1))) || exhibits[0];
    state = { head: 0, threshold: 0, stretched: false, opacity: { attention: data.labels.length ? 0.35 : 0.7, labels: data.attention ? 0.1 : 0.3 }, shown: true, hidden: new Set(), map: 0, mark: -1 };
    over = { attention: null, truth: null, labels: null };
    scan = await read(data.scan, 'scan.nii.gz', { colormap: 'gray', cal_min: data.window[0], cal_max: data.window[1] });
    nv.addVolume(scan);
    find('.words').textContent = `${data.title}. ${data.words}`;
    buildBar();
    buildPanel();
    pressWindow();
    await layOver();
    arrange();
    if (data.point) go(...data.point);
    else nv.createOnLocationChange();
  }
  await open();
  window.addEventListener('hashchange', open);
  window.addEventListener('resize', arrange);
  // For tests, and for whoever scripts the page.
  globalThis.dagmanViewer = { nv, reading, readAt, go, goToMark, open, exhibits };
  document.documentElement.dataset.ready = 'yes';
})();
