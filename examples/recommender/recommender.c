/* SPDX-License-Identifier: MIT */
/*
 * Learn from every table under /input which brand a customer will choose, and write the model to /output/model.json.
 *
 * The model is a conditional (multinomial) logit: P(brand) is proportional to exp(x(brand) . w), where x holds an
 * intercept for all brands but the last, price in dollars, displayed, featured, the brand's share in the household's
 * earlier purchases and whether it was the last one bought. The penalised negative log-likelihood
 *
 *     f(w) = sum over purchases of -log P(chosen) + (RIDGE / 2) |w|^2
 *
 * is strongly convex: it has one minimum, which Newton's method with step halving finds from w = 0. There is no
 * randomness and no clock; tables are read in the order of their paths, so the same tables give the same bytes.
 *
 * The tables come from parties who do not trust each other: everything in them is bounded and checked, and no message
 * repeats a value. Exit codes are listed in README.md.
 */

#include <dirent.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    BRANDS = 4,
    INTERCEPTS = BRANDS - 1,
    PRICE = INTERCEPTS, /* indices of the coefficients */
    DISPLAYED,
    FEATURED,
    SHARE,
    LAST,
    WIDTH,

    MAX_TABLES = 64,
    MAX_DEPTH = 4,           /* directories below /input */
    MAX_PATH_BYTES = 1024,
    MAX_LINE = 512,          /* bytes */
    MAX_PURCHASES = 8192,   /* of all tables together */
    MAX_HOUSEHOLDS = 2048,   /* of one table */
    MIN_PURCHASES = 10,      /* of all tables together */
    MAX_ITERATIONS = 100,
    MAX_HALVINGS = 60,
};

/* README.md has the same list. */
enum {
    EXIT_INPUT_TREE = 10,
    EXIT_INPUT_READ = 11,
    EXIT_TABLE_HEADER = 12,
    EXIT_TABLE_ROW = 13,
    EXIT_TOO_LARGE = 14,
    EXIT_TOO_LITTLE = 15,
    EXIT_NO_CONVERGENCE = 16,
    EXIT_OUTPUT = 17,
};

static const double RIDGE = 1.0;
static const double GRADIENT_LIMIT = 1e-9; /* largest component at the minimum; w is then within 1e-9 / RIDGE of it */
static const double MAX_PRICE = 10000.0;  /* cents */

static const char *const BRAND_NAMES[BRANDS] = {"sunshine", "kleebler", "nabisco", "private"};
static const char *const FEATURE_NAMES[WIDTH] = {
    "intercept.sunshine", "intercept.kleebler", "intercept.nabisco", "price_dollars", "displayed", "featured",
    "share", "last",
};
static const char HEADER[] =
    "household,displayed.sunshine,displayed.kleebler,displayed.nabisco,displayed.private,"
    "featured.sunshine,featured.kleebler,featured.nabisco,featured.private,"
    "price.sunshine,price.kleebler,price.nabisco,price.private,choice";
static const char MODEL_PATH[] = "/output/model.json";

typedef struct {
    double features[BRANDS][WIDTH];
    int choice;
} Purchase;

static char paths[MAX_TABLES][MAX_PATH_BYTES];
static int tables;
static Purchase purchases[MAX_PURCHASES];
static int purchase_count;
static int household_count;

_Noreturn static void stop(int code, const char *why) {
    fprintf(stderr, "error: %s\n", why);
    exit(code);
}

/* Name the place, never the value: whoever sees this stream may not see the table. */
_Noreturn static void stop_at(int code, int table, long line, const char *why) {
    fprintf(stderr, "error: table %d of %d, line %ld: %s\n", table + 1, tables, line, why);
    exit(code);
}

/* ---- the input tree ---- */

static bool has_suffix(const char *name, const char *suffix) {
    size_t length = strlen(name), tail = strlen(suffix);
    return length > tail && strcmp(name + length - tail, suffix) == 0;
}

static void find_tables(const char *directory, int depth) {
    if (depth > MAX_DEPTH)
        stop(EXIT_INPUT_TREE, "directories are nested too deep");
    DIR *stream = opendir(directory);
    if (stream == NULL)
        stop(EXIT_INPUT_TREE, "a directory of the input cannot be read");
    for (struct dirent *entry; (entry = readdir(stream)) != NULL;) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        char path[MAX_PATH_BYTES];
        int length = snprintf(path, sizeof path, "%s/%s", directory, entry->d_name);
        if (length < 0 || (size_t)length >= sizeof path)
            stop(EXIT_INPUT_TREE, "a path is too long");
        if (entry->d_type == DT_DIR) {
            find_tables(path, depth + 1);
        } else if (entry->d_type == DT_REG && has_suffix(entry->d_name, ".csv")) {
            if (tables == MAX_TABLES)
                stop(EXIT_TOO_LARGE, "too many tables");
            memcpy(paths[tables++], path, (size_t)length + 1);
        } else {
            stop(EXIT_INPUT_TREE, "the input holds something else than .csv files and directories");
        }
    }
    closedir(stream);
}

static int compare_paths(const void *left, const void *right) {
    return strcmp(left, right);
}

/* ---- one table ---- */

typedef struct {
    FILE *stream;
    int table;
    long line; /* 1 is the header */
    char text[MAX_LINE];
} Reader;

/* Read one line without its end (LF or CRLF) into reader->text; return false at the end of the file. */
static bool next_line(Reader *reader) {
    size_t length = 0;
    reader->line++;
    for (;;) {
        int byte = getc(reader->stream);
        if (byte == EOF) {
            if (ferror(reader->stream))
                stop_at(EXIT_INPUT_READ, reader->table, reader->line, "cannot be read");
            if (length == 0)
                return false;
            break;
        }
        if (byte == '\n')
            break;
        if (length == MAX_LINE - 1)
            stop_at(EXIT_TOO_LARGE, reader->table, reader->line, "the line is too long");
        if ((byte < 0x20 || byte > 0x7e) && byte != '\r')
            stop_at(EXIT_TABLE_ROW, reader->table, reader->line, "a byte is not printable ASCII");
        reader->text[length++] = (char)byte;
    }
    if (length > 0 && reader->text[length - 1] == '\r')
        length--;
    reader->text[length] = '\0';
    return true;
}

/* Cut the next field off *rest; NULL when there is none. */
static char *next_field(char **rest) {
    char *field = *rest;
    if (field == NULL)
        return NULL;
    char *comma = strchr(field, ',');
    if (comma != NULL) {
        *comma = '\0';
        *rest = comma + 1;
    } else {
        *rest = NULL;
    }
    return field;
}

/* 1 to 9 digits, nothing else. */
static bool read_integer(const char *text, int32_t *value) {
    int32_t number = 0;
    size_t length = strlen(text);
    if (length < 1 || length > 9)
        return false;
    for (; *text != '\0'; text++) {
        if (*text < '0' || *text > '9')
            return false;
        number = number * 10 + (*text - '0');
    }
    *value = number;
    return true;
}

/* digits[.digits], at most 15 digits in all: both integers below are exact in a double, so the quotient is rounded
 * once and equals strtod's. */
static bool read_decimal(const char *text, double *value) {
    int64_t mantissa = 0, scale = 1;
    int digits = 0;
    bool fraction = false;
    if (*text < '0' || *text > '9')
        return false;
    for (; *text != '\0'; text++) {
        if (*text == '.' && !fraction && text[1] != '\0') {
            fraction = true;
            continue;
        }
        if (*text < '0' || *text > '9' || ++digits > 15)
            return false;
        mantissa = mantissa * 10 + (*text - '0');
        if (fraction)
            scale *= 10;
    }
    *value = (double)mantissa / (double)scale;
    return true;
}

typedef struct {
    int32_t household;
    double displayed[BRANDS], featured[BRANDS], price[BRANDS];
    int choice;
} Row;

/* Return NULL, or what is wrong with the line. */
static const char *read_row(char *text, Row *row) {
    char *rest = text, *field = next_field(&rest);
    if (field == NULL || !read_integer(field, &row->household))
        return "household is not a number of 1 to 9 digits";
    double *const flags[] = {row->displayed, row->featured};
    for (int kind = 0; kind < 2; kind++) {
        for (int brand = 0; brand < BRANDS; brand++) {
            field = next_field(&rest);
            if (field == NULL || (strcmp(field, "0") != 0 && strcmp(field, "1") != 0))
                return "displayed and featured are not 0 or 1";
            flags[kind][brand] = field[0] == '1' ? 1.0 : 0.0;
        }
    }
    for (int brand = 0; brand < BRANDS; brand++) {
        field = next_field(&rest);
        if (field == NULL || !read_decimal(field, &row->price[brand]) || row->price[brand] > MAX_PRICE)
            return "price is not a decimal number of cents from 0 to 10000";
    }
    field = next_field(&rest);
    row->choice = -1;
    for (int brand = 0; field != NULL && brand < BRANDS; brand++)
        if (strcmp(field, BRAND_NAMES[brand]) == 0)
            row->choice = brand;
    if (row->choice < 0)
        return "choice is not one of the brands";
    return rest == NULL ? NULL : "there are more than 14 fields";
}

/* What a household has bought so far. */
typedef struct {
    int32_t household;
    int bought[BRANDS], total, last;
} History;

static void append_purchase(const Row *row, const History *history) {
    Purchase *purchase = &purchases[purchase_count++];
    memset(purchase, 0, sizeof *purchase);
    for (int brand = 0; brand < BRANDS; brand++) {
        double *x = purchase->features[brand];
        if (brand < INTERCEPTS)
            x[brand] = 1.0;
        x[PRICE] = row->price[brand] / 100.0;
        x[DISPLAYED] = row->displayed[brand];
        x[FEATURED] = row->featured[brand];
        /* as if the household had bought one pack before, an equal part of each brand */
        x[SHARE] = (history->bought[brand] + 1.0 / BRANDS) / (history->total + 1.0);
        x[LAST] = history->last == brand ? 1.0 : 0.0;
    }
    purchase->choice = row->choice;
}

static void load_table(int table) {
    static int32_t households[MAX_HOUSEHOLDS];
    static Reader reader;
    reader.stream = fopen(paths[table], "rb");
    reader.table = table;
    reader.line = 0;
    if (reader.stream == NULL)
        stop_at(EXIT_INPUT_READ, table, 0, "cannot be opened");
    if (!next_line(&reader) || strcmp(reader.text, HEADER) != 0)
        stop_at(EXIT_TABLE_HEADER, table, 1, "not the header that this program reads");
    History history = {.total = 0};
    int count = 0;
    while (next_line(&reader)) {
        Row row;
        const char *wrong = read_row(reader.text, &row);
        if (wrong != NULL)
            stop_at(EXIT_TABLE_ROW, table, reader.line, wrong);
        if (count == 0 || row.household != history.household) {
            for (int index = 0; index < count; index++)
                if (households[index] == row.household)
                    stop_at(EXIT_TABLE_ROW, table, reader.line, "the rows of a household do not stand together");
            if (count == MAX_HOUSEHOLDS)
                stop_at(EXIT_TOO_LARGE, table, reader.line, "too many households");
            households[count++] = row.household;
            history = (History){.household = row.household, .last = -1};
        }
        if (purchase_count == MAX_PURCHASES)
            stop_at(EXIT_TOO_LARGE, table, reader.line, "too many purchases");
        append_purchase(&row, &history);
        history.bought[row.choice]++;
        history.total++;
        history.last = row.choice;
    }
    fclose(reader.stream);
    if (count == 0)
        stop_at(EXIT_TOO_LITTLE, table, 1, "the table has no purchases");
    household_count += count;
}

/* ---- the fit ---- */

/* Return f(w); with a gradient and a Hessian that are not NULL, compute these too. */
static double evaluate(const double *w, double *gradient, double (*hessian)[WIDTH]) {
    double value = 0.0;
    for (int i = 0; i < WIDTH; i++) {
        value += 0.5 * RIDGE * w[i] * w[i];
        if (gradient != NULL) {
            gradient[i] = RIDGE * w[i];
            for (int j = 0; j < WIDTH; j++)
                hessian[i][j] = i == j ? RIDGE : 0.0;
        }
    }
    for (int row = 0; row < purchase_count; row++) {
        const Purchase *purchase = &purchases[row];
        double utility[BRANDS], weight[BRANDS], highest = -INFINITY, total = 0.0;
        for (int brand = 0; brand < BRANDS; brand++) {
            utility[brand] = 0.0;
            for (int i = 0; i < WIDTH; i++)
                utility[brand] += purchase->features[brand][i] * w[i];
            if (utility[brand] > highest)
                highest = utility[brand];
        }
        for (int brand = 0; brand < BRANDS; brand++)
            total += weight[brand] = exp(utility[brand] - highest);
        value += log(total) + highest - utility[purchase->choice];
        if (gradient == NULL)
            continue;
        double mean[WIDTH] = {0};
        for (int brand = 0; brand < BRANDS; brand++)
            for (int i = 0; i < WIDTH; i++)
                mean[i] += (weight[brand] / total) * purchase->features[brand][i];
        for (int i = 0; i < WIDTH; i++)
            gradient[i] += mean[i] - purchase->features[purchase->choice][i];
        for (int brand = 0; brand < BRANDS; brand++)
            for (int i = 0; i < WIDTH; i++)
                for (int j = 0; j <= i; j++)
                    hessian[i][j] += (weight[brand] / total) * (purchase->features[brand][i] - mean[i]) *
                                     (purchase->features[brand][j] - mean[j]);
    }
    return value;
}

/* Solve hessian . step = gradient by Cholesky's decomposition of the lower triangle, in place. */
static bool solve(double (*hessian)[WIDTH], const double *gradient, double *step) {
    for (int i = 0; i < WIDTH; i++) {
        for (int j = 0; j <= i; j++) {
            double sum = hessian[i][j];
            for (int k = 0; k < j; k++)
                sum -= hessian[i][k] * hessian[j][k];
            if (i != j)
                hessian[i][j] = sum / hessian[j][j];
            else if (sum > 0.0)
                hessian[i][i] = sqrt(sum);
            else
                return false;
        }
    }
    for (int i = 0; i < WIDTH; i++) {
        step[i] = gradient[i];
        for (int k = 0; k < i; k++)
            step[i] -= hessian[i][k] * step[k];
        step[i] /= hessian[i][i];
    }
    for (int i = WIDTH - 1; i >= 0; i--) {
        for (int k = i + 1; k < WIDTH; k++)
            step[i] -= hessian[k][i] * step[k];
        step[i] /= hessian[i][i];
    }
    return true;
}

static double largest(const double *vector) {
    double result = 0.0;
    for (int i = 0; i < WIDTH; i++)
        if (!(fabs(vector[i]) <= result)) /* keeps a NaN */
            result = fabs(vector[i]);
    return result;
}

typedef struct {
    double w[WIDTH], objective, gradient_max;
    int iterations;
} Model;

static void fit(Model *model) {
    double gradient[WIDTH], hessian[WIDTH][WIDTH], step[WIDTH], trial[WIDTH];
    memset(model, 0, sizeof *model);
    for (;; model->iterations++) {
        model->objective = evaluate(model->w, gradient, hessian);
        model->gradient_max = largest(gradient);
        if (model->gradient_max <= GRADIENT_LIMIT)
            return;
        if (model->iterations == MAX_ITERATIONS || !solve(hessian, gradient, step))
            stop(EXIT_NO_CONVERGENCE, "the fit did not converge");
        double length = 1.0, slope = 0.0;
        for (int i = 0; i < WIDTH; i++)
            slope += gradient[i] * step[i];
        for (int halvings = 0;; halvings++, length *= 0.5) {
            for (int i = 0; i < WIDTH; i++)
                trial[i] = model->w[i] - length * step[i];
            /* Armijo's condition, with room for the rounding of f near the minimum */
            if (evaluate(trial, NULL, NULL) <= model->objective - 1e-4 * length * slope + 1e-12 * model->objective)
                break;
            if (halvings == MAX_HALVINGS)
                stop(EXIT_NO_CONVERGENCE, "the fit did not converge");
        }
        memcpy(model->w, trial, sizeof trial);
    }
}

/* ---- the result ---- */

static void write_names(FILE *stream, const char *key, const char *const *names, int count) {
    fprintf(stream, "  \"%s\": [", key);
    for (int i = 0; i < count; i++)
        fprintf(stream, "%s\"%s\"", i == 0 ? "" : ", ", names[i]);
    fputs("],\n", stream);
}

static void write_model(const Model *model) {
    FILE *stream = fopen(MODEL_PATH, "wb");
    if (stream == NULL)
        stop(EXIT_OUTPUT, "the model cannot be written");
    fputs("{\n  \"schema\": \"recommender.model/1\",\n", stream);
    write_names(stream, "brands", BRAND_NAMES, BRANDS);
    write_names(stream, "features", FEATURE_NAMES, WIDTH);
    fputs("  \"coefficients\": [", stream);
    for (int i = 0; i < WIDTH; i++)
        fprintf(stream, "%s%.17g", i == 0 ? "" : ", ", model->w[i]);
    fprintf(stream, "],\n  \"ridge\": %.17g,\n  \"objective\": %.17g,\n  \"gradient_max\": %.3g,\n", RIDGE,
            model->objective, model->gradient_max);
    fprintf(stream, "  \"iterations\": %d,\n  \"tables\": %d,\n  \"households\": %d,\n  \"purchases\": %d\n}\n",
            model->iterations, tables, household_count, purchase_count);
    bool failed = ferror(stream) != 0;
    if (fclose(stream) != 0 || failed) {
        remove(MODEL_PATH);
        stop(EXIT_OUTPUT, "the model cannot be written");
    }
}

int main(void) {
    static Model model;
    find_tables("/input", 0);
    if (tables == 0)
        stop(EXIT_INPUT_TREE, "there is no table under /input");
    qsort(paths, (size_t)tables, sizeof paths[0], compare_paths);
    for (int table = 0; table < tables; table++)
        load_table(table);
    if (purchase_count < MIN_PURCHASES)
        stop(EXIT_TOO_LITTLE, "there are too few purchases to learn from");
    fit(&model);
    write_model(&model);
    return EXIT_SUCCESS;
}
