// A scan in three planes with attention or labels over it, drawn by NiiVue from what the page holds.
(async () => {
  'use strict';
  const data = JSON.parse(document.getElementById('data').textContent);
  const bar = document.querySelector('.bar'), place = document.querySelector('.place');
  const nv = new niivue.Niivue({ isRadiologicalConvention: true, sagittalNoseLeft: true, crosshairWidth: 0.4, isOrientCube: false, show3Dcrosshair: false, dragAndDropEnabled: false,
    crosshairColor: [0.4, 0.8, 1, 0.8], backColor: [0, 0, 0, 1], multiplanarForceRender: false, logLevel: 'error' });
  await nv.attachToCanvas(document.getElementById('view'));
  nv.addColormap('above', { R: [255, 255], G: [128, 128], B: [13, 13], A: [0, 190], I: [0, 255] });
  nv.addColormap('below', { R: [26, 26], G: [128, 128], B: [242, 242], A: [0, 190], I: [0, 255] });
  nv.setSliceType(nv.sliceTypeMultiplanar);

  const element = (name, attributes = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };
  const read = (base64, name, more = {}) => niivue.NVImage.loadFromBase64({ base64, name, ...more });
  const scan = await read(data.scan, 'scan.nii.gz', { colormap: 'gray', cal_min: data.window[0], cal_max: data.window[1] });
  nv.addVolume(scan);
  const state = { head: 0, threshold: 0, opacity: data.labels ? 0.5 : 1, shown: true };
  let over = null;

  async function layOver() {
    if (over) nv.removeVolume(over);
    over = null;
    if (data.labels) {
      over = await read(data.labels.map, 'labels.nii.gz', { opacity: 0.5 });
      over.setColormapLabel(data.labels.colors);
      nv.addVolume(over);
    } else if (data.attention) {
      // Held as its distance from uniform: 0 is clear, above orange, below blue.
      const low = state.threshold * data.attention.reach;
      over = await read(data.attention.maps[state.head], 'attention.nii.gz', {
        colormap: 'above', colormapNegative: 'below', cal_min: low, cal_max: data.attention.reach,
        cal_minNeg: -data.attention.reach, cal_maxNeg: -low });
      nv.addVolume(over);
    }
    if (over) nv.setOpacity(1, state.shown ? state.opacity : 0);
  }

  function setWindow(name) {
    [scan.cal_min, scan.cal_max] = data.windows[name];
    for (const button of bar.querySelectorAll('[data-window]')) button.setAttribute('aria-pressed', String(button.dataset.window === name));
    nv.updateGLVolume();
  }

  function slide(text, value, change) {
    const input = element('input', { type: 'range', min: 0, max: 1, step: 0.05, value });
    input.addEventListener('input', () => change(Number(input.value)));
    bar.append(element('label', {}, text + ' ', input));
  }

  for (const name of Object.keys(data.windows)) {
    const button = element('button', { type: 'button', 'data-window': name, 'aria-pressed': String(data.windows[name] + '' === data.window + '') }, name);
    button.addEventListener('click', () => setWindow(name));
    bar.append(button);
  }
  if (data.attention) {
    const select = element('select', { 'aria-label': 'Head' });
    data.attention.maps.forEach((_, i) => select.append(element('option', { value: i }, i ? `head ${i}` : 'mean of heads')));
    select.addEventListener('change', () => { state.head = Number(select.value); layOver(); });
    bar.append(element('label', {}, 'Attention ', select));
    slide('threshold', 0, value => { state.threshold = value; layOver(); });
  }
  if (data.attention || data.labels) slide('opacity', state.opacity, value => { state.opacity = value; nv.setOpacity(1, value); });

  const reading = { mm: [0, 0, 0], value: 0, over: null };
  nv.onLocationChange = location => {
    const [x, y, z] = location.mm, value = location.values[0].value;
    Object.assign(reading, { mm: [x, y, z], value, over: location.values[1] ? location.values[1].value : null });
    const at = (low, high, mm) => `${mm < 0 ? low : high} ${Math.abs(mm).toFixed(1)}`;
    let text = `${at('L', 'R', x)}  ${at('P', 'A', y)}  ${at('I', 'S', z)} mm:  ${Number(value.toFixed(1))}${data.unit}`;
    if (over && data.labels) text += `, ${data.labels.names[Math.round(reading.over)] || 'no structure'}`;
    else if (over) text += `, attention ${(1 + reading.over).toFixed(3)} times uniform`;
    place.textContent = text;
  };
  const moves = { ArrowLeft: [1, 0, 0], ArrowRight: [-1, 0, 0], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0], PageUp: [0, 0, 1], PageDown: [0, 0, -1] };
  document.addEventListener('keydown', event => {
    if (['SELECT', 'INPUT'].includes(event.target.nodeName)) return;
    const window = Object.keys(data.windows)['123'.indexOf(event.key)];
    if (moves[event.key]) nv.moveCrosshairInVox(...moves[event.key]);
    else if (window) setWindow(window);
    else if (event.key === 'o' && over) { state.shown = !state.shown; nv.setOpacity(1, state.shown ? state.opacity : 0); }
    else return;
    event.preventDefault();
    event.stopPropagation();
  }, true);
  await layOver();
  nv.createOnLocationChange();
  // For tests, and for whoever scripts the page.
  globalThis.dagmanViewer = { nv, reading, go: (x, y, z) => { nv.scene.crosshairPos = nv.mm2frac([x, y, z]); nv.drawScene(); nv.createOnLocationChange(); } };
  document.documentElement.dataset.ready = 'yes';
})();
