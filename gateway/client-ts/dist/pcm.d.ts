import type { PcmFormat } from "./messages.js";
/** Convert samples within ±1 to bytes. */
export declare function encode(pcm: Float32Array, format: PcmFormat): ArrayBuffer;
/** Convert bytes to samples within ±1. */
export declare function decode(data: ArrayBuffer, format: PcmFormat): Float32Array<ArrayBuffer>;
/** Convert a sample within ±1 to a 16-bit integer. */
export declare function toInt16(sample: number): number;
