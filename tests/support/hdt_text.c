/* What jobs say. */
#include "tests/support/hdt_text.h"

#include <stdio.h>

bool hdt_keep_text(void *page, const char *text)
{
    hdt_page *out = page;
    const size_t room = sizeof out->text - out->used;
    const size_t length = (size_t)snprintf(out->text + out->used, room, "%s", text);
    out->used += length < room ? length : room - 1;
    return true;
}

bool hdt_drop_text(void *user, const char *text)
{
    (void)user, (void)text;
    return true;
}
