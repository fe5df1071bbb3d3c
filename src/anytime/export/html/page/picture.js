// From a picture to what the network takes: the steps of `model.prepare`, with Pillow's arithmetic.

const PRECISION = 22; // bits of a weight of the resize
const LONGEST = 8; // a picture longer than this multiple of its shorter side is cropped before it is resized

/** Opaque bytes, `channels` for each pixel, from RGBA; transparent parts show white. */
function opaque(rgba, width, height, channels) {
  const data = new Uint8Array(width * height * channels);
  for (let i = 0, j = 0; i < rgba.length; i += 4) {
    let r = rgba[i], g = rgba[i + 1], b = rgba[i + 2];
    if (rgba[i + 3] < 255) {
      const a = rgba[i + 3] / 255, white = 255 * (1 - a);
      r = Math.round(r * a + white);
      g = Math.round(g * a + white);
      b = Math.round(b * a + white);
    }
    if (channels === 1) data[j++] = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16;
    else {
      data[j++] = r;
      data[j++] = g;
      data[j++] = b;
    }
  }
  return { data, width, height, channels };
}

/** Which pixels each of `out` places reads, and their weights: a triangle, as wide as the scale. */
function taps(size, from, to, out) {
  const scale = Math.fround(to - from) / out, support = Math.max(scale, 1), places = [];
  for (let i = 0; i < out; i++) {
    const center = from + (i + 0.5) * scale;
    const first = Math.max(Math.trunc(center - support + 0.5), 0);
    const end = Math.min(Math.trunc(center + support + 0.5), size), weights = [];
    for (let x = first; x < end; x++) weights.push(Math.max(1 - Math.abs((x - center + 0.5) * (1 / support)), 0));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    places.push({ first, weights: weights.map((weight) => Math.trunc(0.5 + (weight / sum) * 2 ** PRECISION)) });
  }
  return places;
}

/** Each row resized to `width` pixels, from its part between `from` and `to`. */
function alongRows({ data, width: w, height, channels: n }, width, from, to) {
  const places = taps(w, from, to, width), made = new Uint8Array(width * height * n);
  for (let y = 0, i = 0; y < height; y++)
    for (const { first, weights } of places)
      for (let c = 0; c < n; c++) {
        let sum = 2 ** (PRECISION - 1), at = (y * w + first) * n + c;
        for (const weight of weights) {
          sum += data[at] * weight;
          at += n;
        }
        made[i++] = Math.min(sum >> PRECISION, 255);
      }
  return { data: made, width, height, channels: n };
}

/** Each column resized to `height` pixels, from its part between `from` and `to`. */
function alongColumns({ data, width, height: h, channels: n }, height, from, to) {
  const row = width * n, made = new Uint8Array(row * height);
  taps(h, from, to, height).forEach(({ first, weights }, y) => {
    for (let i = 0; i < row; i++) {
      let sum = 2 ** (PRECISION - 1), at = first * row + i;
      for (const weight of weights) {
        sum += data[at] * weight;
        at += row;
      }
      made[y * row + i] = Math.min(sum >> PRECISION, 255);
    }
  });
  return { data: made, width, height, channels: n };
}

/** Pillow's bilinear resize of the part `box` = [left, upper, right, lower] of a picture, to bytes after each direction. */
function resized(picture, width, height, box = [0, 0, picture.width, picture.height]) {
  const [left, upper, right, lower] = box.map(Math.fround), { width: w, height: h } = picture;
  const across = (p) => (w !== width || left || right !== width ? alongRows(p, width, left, right) : p);
  const down = (p) => (h !== height || upper || lower !== height ? alongColumns(p, height, upper, lower) : p);
  const columnsFirst = h > height && h - height > 2 * (w - width); // as Pillow 13; earlier ones differ by 1 there
  return columnsFirst ? across(down(picture)) : down(across(picture));
}

/** The part of a picture from (left, upper) on; outside of it is black. */
function cropped(picture, left, upper, width, height) {
  const n = picture.channels, data = new Uint8Array(width * height * n);
  const from = Math.max(left, 0), to = Math.min(left + width, picture.width);
  for (let y = Math.max(upper, 0); y < Math.min(upper + height, picture.height); y++) {
    const row = y * picture.width;
    data.set(picture.data.subarray((row + from) * n, (row + to) * n), ((y - upper) * width + from - left) * n);
  }
  return { data, width, height, channels: n };
}

/** As Python's `round`: halves go to the even number. */
function rounded(value) {
  const down = Math.floor(value);
  if (value - down !== 0.5) return Math.round(value);
  return down % 2 ? down + 1 : down;
}

/** The test view of a picture, as `anytime.support.views.middle_view` makes it. */
function middleView(picture, [, height, width], ratio, stretched) {
  const { width: w, height: h } = picture;
  if (stretched) return resized(picture, width, height);
  if (ratio === 1) {
    const own = w / h, wanted = width / height;
    const cropWidth = own > wanted ? wanted * h : w, cropHeight = own < wanted ? w / wanted : h;
    const left = (w - cropWidth) * 0.5, upper = (h - cropHeight) * 0.5;
    return resized(picture, width, height, [left, upper, left + cropWidth, upper + cropHeight]);
  }
  const limit = LONGEST * Math.min(w, h);
  const dx = Math.floor(Math.max(w - limit, 0) / 2), dy = Math.floor(Math.max(h - limit, 0) / 2);
  if (dx || dy) picture = cropped(picture, dx, dy, w - 2 * dx, h - 2 * dy);
  const shorter = rounded(Math.max(height, width) * ratio), upright = picture.width <= picture.height;
  const longer = Math.trunc((shorter * Math.max(picture.width, picture.height)) / Math.min(picture.width, picture.height));
  picture = upright ? resized(picture, shorter, longer) : resized(picture, longer, shorter);
  const offset = (length, kept) => (length >= kept ? rounded((length - kept) / 2) : -Math.floor((kept - length) / 2));
  return cropped(picture, offset(picture.width, width), offset(picture.height, height), width, height);
}

/** What the network takes, float32 CHW in [0, 1], from bytes HWC. */
function toNetwork({ data, width, height, channels }) {
  const image = new Float32Array(data.length), plane = width * height;
  for (let i = 0; i < plane; i++) for (let c = 0; c < channels; c++) image[c * plane + i] = data[i * channels + c] / 255;
  return image;
}

/** A canvas with the picture. */
function drawn(canvas, { data, width, height, channels }) {
  const pixels = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = data[i * channels + (channels === 1 ? 0 : c)];
    pixels.data[4 * i + 3] = 255;
  }
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

/** The picture of a frame (an image or a video) of the page, in the network's channels. */
function captured(source, width, height, channels) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(source, 0, 0);
  return opaque(context.getImageData(0, 0, width, height).data, width, height, channels);
}

/** The picture in a file; an error if the browser cannot read it. */
async function pictureIn(file, channels) {
  const image = await createImageBitmap(file, { colorSpaceConversion: "none" });
  try {
    return captured(image, image.width, image.height, channels);
  } finally {
    image.close();
  }
}
