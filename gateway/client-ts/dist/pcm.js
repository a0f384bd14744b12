// Samples as bytes, little-endian.
/** Convert samples within ±1 to bytes. */
export function encode(pcm, format) {
    const size = format === "pcm_s16le" ? 2 : 4;
    const view = new DataView(new ArrayBuffer(size * pcm.length));
    pcm.forEach((sample, i) => {
        if (size === 2)
            view.setInt16(2 * i, toInt16(sample), true);
        else
            view.setFloat32(4 * i, sample, true);
    });
    return view.buffer;
}
/** Convert bytes to samples within ±1. */
export function decode(data, format) {
    const view = new DataView(data);
    if (format === "pcm_s16le") {
        return Float32Array.from({ length: data.byteLength >> 1 }, (_, i) => view.getInt16(2 * i, true) / 32768);
    }
    return Float32Array.from({ length: data.byteLength >> 2 }, (_, i) => view.getFloat32(4 * i, true));
}
/** Convert a sample within ±1 to a 16-bit integer. */
export function toInt16(sample) {
    return Math.round(Math.max(-1, Math.min(1, sample)) * 32767);
}
