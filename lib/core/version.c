/* The version that was compiled into the library. */
#include <heddle/version.h>

const char *hd_version(void)
{
    return HD_VERSION_STRING;
}
