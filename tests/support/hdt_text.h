/* What jobs say, kept or dropped: for their hd_text_fn. */
#ifndef HDT_TEXT_H
#define HDT_TEXT_H

#include <stdbool.h>
#include <stddef.h>

typedef struct hdt_page {
    char text[8192]; /* cut to what fits */
    size_t used;
} hdt_page;

/* `page` is an hdt_page that began as zeros. */
bool hdt_keep_text(void *page, const char *text);
bool hdt_drop_text(void *user, const char *text);

#endif
