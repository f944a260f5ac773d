/* The dots, row by row, in octal: 4 is the left column, 1 the right one. */
#include "report/font.h"

static const char letters[26][HDI_FONT_HEIGHT + 1] = {
    "25755", "65656", "34443", "65556", "74647", "74644", "34553", "55755", "72227",
    "11152", "55655", "44447", "57755", "65555", "25552", "65644", "25573", "65655",
    "34216", "72222", "55557", "55552", "55775", "55255", "55222", "71247",
};
static const char digits[10][HDI_FONT_HEIGHT + 1] = {
    "75557", "26227", "71747", "71717", "55711", "74717", "74757", "71122", "75757", "75717",
};

bool hdi_font_dot(char letter, int x, int y)
{
    static const char hyphen[] = "00700", stop[] = "00002", colon[] = "02020", slash[] = "11244",
                      plus[] = "02720", line[] = "00007", comma[] = "00024";
    const char *rows = 0;
    if (x < 0 || x >= HDI_FONT_WIDTH || y < 0 || y >= HDI_FONT_HEIGHT) return false;
    if (letter >= 'a' && letter <= 'z')
        rows = letters[letter - 'a'];
    else if (letter >= 'A' && letter <= 'Z')
        rows = letters[letter - 'A'];
    else if (letter >= '0' && letter <= '9')
        rows = digits[letter - '0'];
    else
        switch (letter) {
        case '-': rows = hyphen; break;
        case '.': rows = stop; break;
        case ',': rows = comma; break;
        case ':': rows = colon; break;
        case '/': rows = slash; break;
        case '+': rows = plus; break;
        case '_': rows = line; break;
        default: break;
        }
    return rows && ((rows[y] - '0') >> (HDI_FONT_WIDTH - 1 - x) & 1);
}
