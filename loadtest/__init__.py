"""Load tests with Locust: callers who speak in real time, and what they got to hear.

How things are measured, the same for every face:

* All conversations are admitted before any of them speaks; then they start together. One that was refused stays in
  the denominator: the frames it should have had are missing.
* "Together" is within one frame: callers begin evenly spread over its 80 ms, as people would, unless all at one instant
  is asked for, which fills the server's batches as nothing in the world does.
* A caller speaks one frame of 80 ms per tick of a fixed schedule. A frame that is late is sent late, and never are
  two sent at once to catch up: a caller more than a tick behind goes on from where it is, and what it therefore does
  not send within the fixed time is unsent, and missing too.
* The caller's own lateness is measured. Above 80 ms at the 99th percentile the client is too slow, and the figures
  say more about it than about the server.
* The latency of a frame is from the last sample of user frame u being handed to the transport until agent frame
  u + 1 has been received; where the server drops user frames, what comes later counts for an earlier one, and looks
  the later for it. Agent frame 0 answers nothing and is not measured. A frame that never came has no latency:
  it is missing, not zero.
* Playback begins with agent frame 1 and needs one frame per 80 ms from then on; one more than 100 ms behind that is
  an underrun.
* After the fixed time there is a fixed time to drain; what comes later is missing.
* A message that is not as the protocol says fails its conversation, and that fails the run.
"""
