"""The compiled machine that plays programs: one lane per group of identical channels, event by event.

A lane steps through its code to the next meeting (`START`, `WAIT`, `MARK`, the end of a loop that holds one, or the
end of the program): `lane`. `play` takes all lanes from meeting to meeting. Rounds of a loop that repeat are added up
at once (`rounds`), stretches between meetings that come again are done again from memory (`stretch`), lanes that do
the same follow one of them (`follow`). `sim.reference` is the slow twin of it all, `sim.vm` says what lies where.
"""
