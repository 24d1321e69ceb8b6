"""The demonstration: three real nodes, real data, a node killed and brought back, repair, and the proof.

The parts: ``data`` (what is loaded), ``verify`` (the proof), ``render`` (how it looks), ``cluster`` (the processes),
``guardian`` (cleans up after a killed demonstration), ``story`` (what happens, in order).
"""
