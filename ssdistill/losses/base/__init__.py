"""Parts that losses share: banks, similarities, matching, maps, prototypes."""
