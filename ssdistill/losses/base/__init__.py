"""The parts that losses share: banks, similarities, matching, maps, prototypes. No loss itself."""
