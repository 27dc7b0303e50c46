"""Writes text to the event pipe, as a faulty library does, and trains normally."""

from protocol import epoch, finished, order, phase, write

order()
phase("training")
for _ in range(50):
    write(b"WARNING: a library writes to the wrong descriptor\n")
epoch(1)
write(b"\x00\xff\xfe garbage\n\n\n[1,2,3]\n{}\n")
write(b'{"kind":"epoch","epoch":2,"total_epochs":3,"metrics":{"loss":NaN},"seconds":1}\n')
finished(fine=True)
