"""Simulate a fleet: how many calls are refused while a pod has a free slot, by the way a balancer picks a pod.

* `random`: one pod at random, as a Service of Kubernetes does.
* `least connections`: the pod with the fewest calls of the same balancer, and k more attempts on the next ones.
* `round robin`: the next pods in turn, k + 1 attempts.
* `allocator`: knows every slot.

Calls arrive at random times (Poisson), some of them in bursts. Their length is exponential. Pods drain and fail at
random and are replaced after a minute. Balancers have several replicas, each of which knows its own calls only.
"""
