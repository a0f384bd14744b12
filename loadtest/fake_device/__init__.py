"""A fake GPU: the real Triton serves models that take a GPU's time but compute nothing.

Everything else is real: processes, tensors of the published model's shapes, slots, START and END, the prefix cache and
the sampling inputs. So the gateway, Triton and the protocol between them can be loaded as a GPU would let them, on a
machine that has none. What it does not show: copies between host and device, and how well kernels share a device; one
model runs at a time, as four processes on one GPU do without MPS.
"""
