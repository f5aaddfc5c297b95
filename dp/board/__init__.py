"""The board: submitted result cards with their attacked images; how they are checked and ranked."""
