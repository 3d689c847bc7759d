"""Translation: in which language widgets, cards and pictures speak; code is in English, tables have the rest."""
