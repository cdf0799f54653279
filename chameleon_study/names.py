"""Names by which stored files and readings of the study are recognised."""

HONEST = "honest-"  # files of results that the honest study's experiments are packed into
FOREIGN = "foreign-"  # readings amid foreign rows, and experiments that supply them where honest-* has none
TRANSFER = "transfer:"  # readings of another corpus's test documents
ARTICLES = "wikitext"  # corpora of that name: their rows' `group` is the article
