"""Load tests and benchmarks of the whole service, of its models, and of one commit against another.

What this package may import of the project: `gateway.client`, `gateway.cli`, `gateway.triton_server` and the generated
messages in `gateway.api.grpc.personaplex`; of a built repository, its `manifest.json` and files. `loadtest.bench` and
`loadtest.fake_device` may import `model_repository` too: they measure models and write repositories. Nothing else in
the project imports `loadtest`.

How a load test measures, the same for every API:

* A call has a time, and all agent frames of that time are expected. A refused or failed call counts: the frames it
  should have received are missing. The time of a call that the run stops ends there, also of a refused one.
* With `--starts spread`, the default of `python -m loadtest`, all conversations are admitted before the first user
  sends audio; then all start within one frame, evenly spread over 80 ms, as independent users would. `together` starts
  all at the same instant, which fills the server's batches more than real users do. `admitted`, the default of the
  locustfile, starts each as soon as it is admitted.
* A user sends one frame of 80 ms per tick of a fixed schedule. A late frame is sent late; two frames are never sent at
  once. A user more than a tick behind moves its schedule; the frames it cannot send in the call's time count as unsent
  and missing.
* The client's own lateness is measured. Above 80 ms at the 99th percentile the client was too slow, and the result
  describes the client more than the server.
* A frame's latency runs from handing the last sample of user frame u to the transport until agent frame u + 1 has been
  received. If the server drops user frames, later agent frames count for earlier user frames, which raises the latency.
  Agent frame 0 answers no user frame and is not measured. A frame that never arrives is missing; it has no latency.
* Playback starts with agent frame 1 and needs one frame per 80 ms. A frame more than 100 ms behind is an underrun.
* After a call's time there is a fixed time to drain. Frames that arrive later are missing.
* A message that violates the protocol fails its conversation, and a failed conversation fails the run.
"""
