/** Persona and sampling. What is left out has the server's default. */
export interface PersonaParams {
    /** Name of a preset voice. */
    voice?: string | undefined;
    /** Name of a preset prompt. */
    system_prompt?: string | undefined;
    /** Description of the agent; empty means none. Not together with `system_prompt`. */
    text_prompt?: string | undefined;
    /** 0 is greedy. */
    audio_temperature?: number | undefined;
    audio_top_k?: number | undefined;
    /** 0 is greedy. */
    text_temperature?: number | undefined;
    text_top_k?: number | undefined;
    greedy?: boolean | undefined;
    /** The same seed and audio give the same answer. */
    seed?: number | undefined;
}
/** A recording, with the parameters of the answer. */
export interface RespondParams extends PersonaParams {
    /** Any file that libsndfile reads, 8 to 192 kHz. */
    audio: Blob | BufferSource;
    /** A recording of the voice to use. */
    voice_audio?: Blob | BufferSource | undefined;
    /** Frames of 80 ms to answer. */
    max_steps?: number | undefined;
    /** Keep the conversation for further turns. */
    keep?: boolean | undefined;
    /** The conversation to continue. */
    conversation_id?: string | undefined;
    /** `tokens` adds all tokens to the answer. */
    include?: "tokens"[] | undefined;
}
/** Milliseconds of one stage. */
export interface StageTimings {
    median_ms: number;
    p99_ms: number;
}
export interface Timings {
    setup_ms: number;
    time_to_first_audio_ms: number;
    stages: Record<"encode" | "temporal" | "depformer" | "decode", StageTimings>;
    rtf: number;
}
export interface RespondAnswer {
    /** A WAV file: mono PCM16. */
    audio: Uint8Array<ArrayBuffer>;
    transcript: string;
    /** Frames of 80 ms. */
    frames: number;
    sample_rate: number;
    voice: string;
    seed: number;
    timings: Timings;
    conversation_id?: string;
    /** [frames] */
    text_tokens?: number[];
    /** [frames][8] */
    agent_codes?: number[][];
    /** [frames][8] */
    user_codes?: number[][];
}
export interface Voices {
    default: string;
    voices: {
        name: string;
        seconds: number;
        origin: "built-in" | "added";
    }[];
    /** Whether requests may send `voice_audio`. */
    voice_audio: boolean;
}
export interface SystemPrompts {
    default: string;
    system_prompts: {
        name: string;
        text: string;
    }[];
}
export type PcmFormat = "pcm_s16le" | "pcm_f32le";
/** Parameters of a live conversation. */
export interface LiveParams extends PersonaParams {
    /** When no audio arrives: wait for it (default), or go on with silence in real time. */
    on_gap?: "wait" | "silence" | undefined;
    /** The user's audio: `pcm_s16le` at 24,000 Hz unless stated. The agent's has the same format. */
    audio?: {
        format?: PcmFormat | undefined;
        sample_rate?: number | undefined;
    } | undefined;
}
/**
 * The models hold the prompt; the agent's next frame follows. It comes again when the connection was lost and the
 * conversation is resumed.
 */
export interface Ready {
    type: "ready";
    conversation_id: string;
    voice: string;
    seed: number;
    /** Of the agent. */
    audio: {
        format: PcmFormat;
        sample_rate: number;
    };
    /** Samples of a frame. */
    frame_size: number;
    setup_ms: number;
    /** How to resume the conversation, and for how many seconds it waits for that; null if the server does not. */
    resume: {
        token: string;
        seconds: number;
    } | null;
    /** Of the next frame. */
    index: number;
    /** Text of the frames that were not sent before the conversation was resumed. The agent heard silence in them. */
    missed_text: string;
}
/** 80 ms of the agent. */
export interface AgentAudio {
    type: "audio";
    index: number;
    /** [1920] within ±1, at 24 kHz. */
    pcm: Float32Array<ArrayBuffer>;
}
/** Text of frame `index`, whose audio comes next. */
export interface AgentText {
    type: "text";
    index: number;
    text: string;
}
/** About once a second. */
export interface Stats {
    type: "stats";
    index: number;
    /** The maximum since the last one. */
    latency_ms: number;
    dropped_frames: number;
    /** User audio that waits in the server. */
    queued_ms: number;
}
/** A condition to know about, such as the end of the longest duration. */
export interface Warning {
    type: "warning";
    code: string;
    message: string;
    seconds_left?: number;
}
/** The last event: `reason` for programs ("completed" after `end`), `message` for people, and totals. */
export interface Ended {
    type: "ended";
    reason: string;
    message: string;
    frames: number;
    seconds: number;
    transcript: string;
    dropped_frames: number;
    late_frames: number;
}
/** What a conversation yields. Programs must ignore types that they do not know: later servers may send more. */
export type Event = Ready | AgentAudio | AgentText | Stats | Warning | Ended;
