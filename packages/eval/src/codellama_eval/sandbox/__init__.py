"""Running programs that nobody has read: what they can reach is listed, and tested, in the package's README.

`workers` is the scorer's side. `zygote` is the program of the pre-forked parents, one for each processor: `isolation`
takes everything away from it that is not needed, then it forks one process for each sample, which runs `roles`.
"""
