/* Text files in a folder of a test's own. */
#ifndef HDT_FILES_H
#define HDT_FILES_H

#include "tests/support/hdt.h"

/* Markup, quotes, a control character, broken UTF-8, a surrogate, and text that must survive. */
#define HDT_HOSTILE_TEXT "a<b>&\"c'\\ \x01 \xff\xc3 \xed\xa0\x80 \xc3\xa9]]>--"

/* Make the folder empty: before each test, since Check may not fork. */
void hdt_files_reset(void);

/* Path of a file in it; good for eight more calls. */
const char *hdt_file(const char *name);

/* The text of a file, which holds no zero byte; owned by the caller, of hdi_free. */
char *hdt_read_text(const char *path);

void hdt_write_text(const char *path, const char *text);

#endif
